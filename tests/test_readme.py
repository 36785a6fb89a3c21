"""The README: its commands are run as printed, and its table is the code's."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinybird_proxy.cli.options import as_markdown
from tinybird_proxy.config import OPTIONS
from tinybird_proxy_operator.names import ConditionType, Reason

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PORTS = (7181, 8000, 8001)


def blocks(language: str) -> list[list[str]]:
    """Lines of each code block with this info string."""
    found = re.findall(rf"^```{re.escape(language)}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the blocks that are run, with the output lines that the README shows for it."""
    command, shown = "", list[str]()
    for line in [line for block in blocks("sh") for line in block]:
        if line.startswith("# → "):
            shown.append(line.removeprefix("# → "))
            continue
        if command:
            yield command, shown
        command, shown = re.sub(r"\s+#( .*)?$", "", line), []
    yield command, shown


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project's files as a new user has them, and nothing else."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    target = tmp_path / "checkout"
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def test_the_commands_of_the_readme_work_as_printed(checkout: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    listening = "until (: > /dev/tcp/127.0.0.1/%d) 2>/dev/null; do kill -0 $! || exit 9; sleep 0.05; done"
    script, expected = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"], {}
    for number, (command, shown) in enumerate(commands()):
        script += [f"echo {number} > at"]
        if command.endswith("&"):
            script += [command, *[listening % port for port in _ports_of(command)]]
        else:
            script += [f"{{ {command}; }} > out-{number} 2>&1"]
        expected[number] = (command, shown)
    env = {name: value for name, value in os.environ.items() if name not in {option.variable for option in OPTIONS}}
    env |= {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "LOG_FORMAT": "json"}
    run = subprocess.run(
        ["bash", "-m", "-c", "\n".join(script)],
        cwd=checkout,
        env=env,
        timeout=180,
        capture_output=True,
        text=True,
        check=False,
    )
    number = int((checkout / "at").read_text())
    told = (checkout / f"out-{number}").read_text() if (checkout / f"out-{number}").exists() else ""
    assert run.returncode == 0, f"{expected[number][0]}\n{told}\n{run.stderr}"
    for number, (command, shown) in expected.items():
        for line in shown:
            said = (checkout / f"out-{number}").read_text()
            assert line in " ".join(said.split()), f"{command}\n{said}"


def _ports_of(command: str) -> tuple[int, ...]:
    return (7181,) if "emulator" in command else (8000, 8001)


def test_every_variable_that_the_readme_names_is_an_option() -> None:
    known = {name for option in OPTIONS for name in (option.variable, *option.aliases)}
    others = {"DEMO_SECONDS", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "ENGINE_SORTING_KEY"}
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", README))
    assert named - known - others == set()


def test_the_container_example_uses_the_port_that_the_image_exposes() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (docker,) = blocks("sh docker")
    assert "-p 8000:8000" in "\n".join(docker)
    assert re.search(r"^EXPOSE 8000\b", dockerfile, re.MULTILINE)
    assert 'CMD ["run"]' in dockerfile


def test_every_condition_and_every_reason_is_explained() -> None:
    explained = set(re.findall(r"`([A-Z]\w+)`", README.split("### Operate it", 1)[1]))
    assert {str(kind) for kind in ConditionType} | {str(reason) for reason in Reason} <= explained


def test_the_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)\b", README)) - {"it", "up"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_table_of_options_is_the_one_in_the_code() -> None:
    table = README.split("a test compares -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    assert table == as_markdown()
