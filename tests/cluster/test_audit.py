"""Reading the audit log of the test cluster; no cluster is needed."""

import json
from pathlib import Path
from typing import Any

from tests.e2e.audit import AuditLog

OPERATOR = "system:serviceaccount:tinybird-system:operator"


def _line(verb: str, *, second: int = 1, pod: str | None = "operator-1", user: str = OPERATOR) -> str:
    extra = {} if pod is None else {"extra": {"authentication.kubernetes.io/pod-name": [pod]}}
    entry: dict[str, Any] = {
        "verb": verb,
        "user": {"username": user, **extra},
        "objectRef": {"resource": "tinybirdproxies", "subresource": "status", "namespace": "a", "name": "events"},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": f"2026-01-01T00:00:{second:02}.000000Z",
        "stageTimestamp": f"2026-01-01T00:00:{second:02}.500000Z",
    }
    return json.dumps(entry) + "\n"


def _told(log: AuditLog) -> list[str]:
    return [str(write) for write in log.writes("tinybird-system:operator")]


def test_writes_are_told_by_pod_in_the_order_in_which_they_came_in(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text(_line("patch", second=2) + _line("create", second=1, pod="operator-2") + _line("get"))
    assert _told(AuditLog(path, from_now=False)) == [
        "00:00:01.000000 to 00:00:01.500000 operator-2: create tinybirdproxies/status a/events: 200",
        "00:00:02.000000 to 00:00:02.500000 operator-1: patch tinybirdproxies/status a/events: 200",
    ]


def test_what_was_there_before_what_others_did_and_the_line_being_written_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text(_line("patch"))
    log = AuditLog(path)
    assert _told(log) == []
    with path.open("a") as file:
        file.write(_line("delete", pod=None) + _line("patch", user=f"{OPERATOR}-2") + _line("patch")[:-9])
    assert _told(log) == ["00:00:01.000000 to 00:00:01.500000 : delete tinybirdproxies/status a/events: 200"]
