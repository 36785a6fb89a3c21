"""client.py at work in the pod `tinybird` of a namespace: one process for all commands, as a new one takes a second.

It is begun with the first command, and anew by the next one when it has ended, for instance with the API server.
"""

import json
import subprocess
from pathlib import Path
from select import select
from typing import Any, Final

_CLIENT: Final = (Path(__file__).parent / "client.py").read_text()


class Failed(Exception):
    """A command did not do what it should; the message is why."""


def command(namespace: str, *args: str) -> list[str]:
    """What starts client.py there, with these arguments."""
    exec_ = ("kubectl", "--namespace", namespace, "exec", "--stdin", "tinybird", "--")
    return [*exec_, "python", "-c", _CLIENT, *args]


class Inside:
    """The process in a namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *args: str, timeout_s: float) -> Any:
        """What a command says. Raises ``Failed``."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(args).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._fail("it has ended")
        if not select([process.stdout], [], [], timeout_s)[0]:
            self._fail(f"no answer within {timeout_s:.0f} s")
        if not (line := process.stdout.readline()):
            self._fail("it ended without an answer")
        told = json.loads(line)
        if "failed" in told:
            raise Failed(told["failed"])
        return told["said"]

    def end(self) -> None:
        """No command comes any more."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is not None:
            self.end()
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command(self._namespace, "serve"), stdin=pipe, stdout=pipe, stderr=pipe)
        return self._process

    def _fail(self, why: str) -> None:
        process = self._process
        assert process is not None
        process.kill()
        said = process.communicate()[1].decode(errors="replace").strip()
        self._process = None
        raise Failed(f"{why}. {said}")
