"""The operator with many resources: from an edit to the child that it changes, and what idle resources cost.

Needs the cluster of tests/cluster with the operator installed, as root: its process is looked at from the node, and its
requests are those of the API server's audit log. `make bench-operator` prepares all that. What it makes is in a
namespace of its own, which it deletes. The figures are of the whole machine: nothing else should run on it.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.e2e.bench_operator_figures import (
    EMPTY,
    FILLED,
    Phase,
    Request,
    Usage,
    kinds_table,
    latencies,
    per_kind,
    phases_table,
    requests,
    within,
)
from tests.e2e.bench_operator_probes import Answer, Api, BenchFailed, Watch, opened_api, usage, watching
from tests.e2e.kubectl import (
    HERE,
    OPERATOR,
    OPERATOR_NAMESPACE,
    CommandFailed,
    Namespace,
    resource,
    run,
    token_secret,
)
from tests.e2e.privileges import user_of

_LABEL: Final = "tinybird-proxy.io/e2e=test"
_MADE_BY_OPERATOR: Final = f"app.kubernetes.io/managed-by={OPERATOR}"
_RESOURCES: Final = "/apis/tinybird-proxy.io/v1alpha1/namespaces/{}/tinybirdproxies"
_CONNECTIONS: Final = 16
_PACED_PORT: Final = 8001
_BURST_PORT: Final = 8002
_CLEAN_UP_TIMEOUT_S: Final = 300


def main() -> int:
    """Run it all; the exit status is 1 if something did not come to its end."""
    options = _options()
    if "KUBECONFIG" not in os.environ:
        raise BenchFailed('no cluster: run `make bench-operator`, or first eval "$(tests/cluster/cluster env)"')
    audit_log = Path(os.environ["KUBECONFIG"]).parent / "logs" / "audit.log"
    if not audit_log.exists():
        raise BenchFailed(f"{audit_log} is not there: this needs the cluster of tests/cluster, and no other")
    with ExitStack() as stack:
        api = stack.enter_context(opened_api())
        namespace = stack.enter_context(_namespace())
        services = stack.enter_context(
            watching(namespace, "services", "{.metadata.name}", "{.spec.ports[0].port}", selector=_MADE_BY_OPERATOR)
        )
        statuses = stack.enter_context(
            watching(namespace, "tinybirdproxies", "{.metadata.name}", "{.status.observedGeneration}")
        )
        return _Bench(options, api, namespace, services, statuses, audit_log).run()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench_operator", description=__doc__)
    parser.add_argument("--resources", type=int, default=200, help="with replicas: 0 (default: 200)")
    parser.add_argument("--with-pods", type=int, default=3, help="more of them, with a pod each (default: 3)")
    parser.add_argument("--idle-seconds", type=float, default=300, help="how long nothing is edited (default: 300)")
    parser.add_argument("--settle-seconds", type=float, default=15, help="before that (default: 15)")
    parser.add_argument("--edits-per-second", type=float, default=4, help="while edits are paced (default: 4)")
    parser.add_argument("--timeout-seconds", type=float, default=300, help="for each phase (default: 300)")
    options = parser.parse_args()
    if options.resources < 1 or not 0 <= options.with_pods < 10_000 or options.resources >= 10_000:
        parser.error("--resources must be from 1 to 9999, and --with-pods from 0")
    return options


class _Bench:
    def __init__(
        self,
        options: argparse.Namespace,
        api: Api,
        namespace: Namespace,
        services: Watch,
        statuses: Watch,
        audit_log: Path,
    ) -> None:
        self._options = options
        self._api = api
        self._namespace = namespace
        self._services = services
        self._statuses = statuses
        self._audit_log = audit_log
        self._audit_begin = audit_log.stat().st_size
        self._phases: list[tuple[str, Usage, Usage]] = []
        self._latencies: dict[str, dict[str, float]] = {}
        self._missed: list[str] = []
        numbers = {FILLED: options.with_pods, EMPTY: options.resources}
        self._names = [f"{kind}-{number:04}" for kind, count in numbers.items() for number in range(count)]
        self._counts = numbers

    def run(self) -> int:
        with self._phase("create"):
            self._create()
        self._settle()
        with self._phase("paced edits"):
            self._edit_paced()
        self._settle()
        with self._phase("all at once"):
            burst_s = self._edit_at_once()
        self._settle()
        with self._phase("idle"):
            time.sleep(self._options.idle_seconds)
        self._tell(burst_s)
        return 1 if self._missed else 0

    # Phases.

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        print(f"bench_operator: {name} …", file=sys.stderr, flush=True)
        before = usage(self._api)
        yield
        self._phases.append((name, before, usage(self._api)))

    def _settle(self) -> None:
        """What follows an edit is over: the statuses, and the looks at what was changed."""
        time.sleep(self._options.settle_seconds)

    def _create(self) -> None:
        path = _RESOURCES.format(self._namespace.name)
        answers = self._at_once(lambda name: self._api.send("POST", path, self._resource(name)))
        self._note("created to status", answers, self._statuses, lambda name: (name, "1"))
        if self._options.with_pods:
            filled = [f"tinybirdproxy/{name}" for name in self._names if name.startswith(FILLED)]
            timeout_s = int(self._options.timeout_seconds)
            self._namespace.kubectl(
                "wait", "--for=condition=Ready", f"--timeout={timeout_s}s", *filled, timeout_s=timeout_s + 10
            )

    def _edit_paced(self) -> None:
        answers: dict[str, Answer] = {}
        began_at = time.monotonic()
        for number, name in enumerate(self._names):
            time.sleep(max(0.0, began_at + number / self._options.edits_per_second - time.monotonic()))
            answers[name] = self._edit(name, _PACED_PORT)
        self._note_edits("paced edit", answers, _PACED_PORT)

    def _edit_at_once(self) -> float:
        """Seconds from the first edit to the last child."""
        began_at = time.monotonic()
        answers = self._at_once(lambda name: self._edit(name, _BURST_PORT))
        return self._note_edits("edit of all at once", answers, _BURST_PORT) - began_at

    def _at_once(self, act: Callable[[str], Answer]) -> dict[str, Answer]:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return dict(zip(self._names, pool.map(act, self._names), strict=True))

    def _edit(self, name: str, port: int) -> Answer:
        path = f"{_RESOURCES.format(self._namespace.name)}/{name}"
        return self._api.send("PATCH", path, {"spec": {"service": {"port": port}}})

    def _resource(self, name: str) -> dict[str, Any]:
        return resource(
            name,
            replicas=1 if name.startswith(FILLED) else 0,
            tinybird={"url": self._namespace.tinybird_url, "tokenSecretRef": {"name": "tinybird"}},
            batch={"flushIntervalMilliseconds": 200},
            buffer={"maxSize": "32Mi"},
            drain={"shutdownTimeoutSeconds": 15},
        )

    def _note_edits(self, what: str, answers: Mapping[str, Answer], port: int) -> float:
        last = self._note(f"{what} to Service", answers, self._services, lambda name: (name, str(port)))
        generations = {name: str(answer.body["metadata"]["generation"]) for name, answer in answers.items()}
        self._note(f"{what} to status", answers, self._statuses, lambda name: (name, generations[name]))
        return last

    def _note(self, what: str, answers: Mapping[str, Answer], watch: Watch, row: Callable[[str], Hashable]) -> float:
        """Wait for the row of each resource; when the last came."""
        rows = {name: row(name) for name in answers}
        seen = watch.wait_for(rows.values(), self._options.timeout_seconds)
        missing = [name for name, wanted in rows.items() if wanted not in seen]
        if missing:
            some = ", ".join(missing[:5])
            timeout_s = self._options.timeout_seconds
            self._missed.append(f"{what}: {len(missing)} of {len(rows)} not within {timeout_s:.0f} s: {some}")
        came = {name: seen[wanted] for name, wanted in rows.items() if wanted in seen}
        # The watch may be told sooner than the edit is answered.
        self._latencies[what] = latencies([max(0.0, at - answers[name].at) for name, at in came.items()])
        return max(came.values(), default=float("nan"))

    # Figures.

    def _tell(self, burst_s: float) -> None:
        time.sleep(1)  # an entry is written once its request is answered
        with self._audit_log.open(errors="replace") as lines:
            lines.seek(self._audit_begin)
            asked = requests(lines, user_of(f"{OPERATOR_NAMESPACE}:{OPERATOR}"))
        phases = [Phase(name, old, new, within(asked, old.at, new.at)) for name, old, new in self._phases]
        figures = {phase.name: phase.figures(self._namespace.name) for phase in phases}
        idle = phases[-1]
        counts = per_kind(idle.requests, self._namespace.name)
        for line in self._lines(burst_s, figures, idle, counts):
            print(line)
        for phase in phases:
            if not phase.is_good:
                self._missed.append(
                    f"{phase.name}: {phase.after.holder} led at its end, and {phase.before.holder} at its beginning:"
                    " measure again"
                )
        told = {
            "resources": self._counts,
            "latencies": self._latencies,
            "all_at_once_s": None if math.isnan(burst_s) else round(burst_s, 3),
            "phases": figures,
            "idle_requests": {" ".join(kind): count for kind, count in counts.most_common()},
            "missed": self._missed,
        }
        print(*(f"MISSED: {missed}" for missed in self._missed), json.dumps(told), sep="\n")

    def _lines(
        self, burst_s: float, figures: Mapping[str, Mapping[str, float]], idle: Phase, counts: Mapping[Any, int]
    ) -> Iterator[str]:
        yield f"{self._counts[EMPTY]} TinybirdProxies with replicas: 0, {self._counts[FILLED]} with a pod each"
        yield ""
        yield from _latencies_table(self._latencies)
        yield f"all at once: {burst_s:.1f} s from the first edit to the last Service"
        yield ""
        yield "The operator, in each phase (elsewhere: for other namespaces, the whole cluster and its Lease)"
        yield from phases_table(figures)
        yield ""
        duration_s = (idle.after.at - idle.before.at).total_seconds()
        yield f"Requests in {duration_s:.0f} idle seconds: {len(idle.requests) / duration_s:.1f} a second in all"
        yield from kinds_table(counts, duration_s, self._counts)
        yield from _status_writes(idle.requests, self._namespace.name)


def _latencies_table(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield f"{'':32}{'count':>8}{'p50 ms':>12}{'p99 ms':>12}{'max ms':>12}"
    for what, figures in found.items():
        cells = (figures.get(column, float("nan")) for column in ("p50_ms", "p99_ms", "max_ms"))
        yield f"{what:32}{figures['count']:8.0f}" + "".join(f"{cell:12,.1f}" for cell in cells)


def _status_writes(asked: Iterable[Request], namespace: str) -> Iterator[str]:
    writes = [each for each in asked if each.is_status_write and each.namespace == namespace]
    names = sorted({write.about for write in writes})
    yield f"status writes meanwhile: {len(writes)}" + (f", of {', '.join(names[:5])}" if names else "")


@contextmanager
def _namespace() -> Iterator[Namespace]:
    """With a Tinybird and its token; deleted with all that is in it."""
    namespace = Namespace(f"bench-{uuid.uuid4().hex[:8]}")
    try:
        run("kubectl", "create", "namespace", namespace.name)
        run("kubectl", "label", "namespace", namespace.name, _LABEL)
        namespace.kubectl("apply", "--filename", HERE / "tinybird.yaml")
        namespace.apply(token_secret())
        namespace.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/tinybird")
        yield namespace
    finally:
        began_at = time.monotonic()
        timeout = f"--timeout={_CLEAN_UP_TIMEOUT_S}s"
        command = ("kubectl", "delete", "namespace", namespace.name, "--ignore-not-found", timeout)
        run(*command, timeout_s=_CLEAN_UP_TIMEOUT_S + 10)
        seconds = time.monotonic() - began_at
        print(f"bench_operator: the namespace was gone after {seconds:.0f} s", file=sys.stderr)


def _end_well() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main()
    except (BenchFailed, CommandFailed, AssertionError, subprocess.TimeoutExpired) as error:
        print(f"bench_operator: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(_end_well())
