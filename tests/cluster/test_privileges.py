"""What the end-to-end tests say of the operator's privileges, from audit logs and roles of the tests' own."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.e2e.privileges import EVERYWHERE, Access, Comparison, Grant, Log, compare, grants, read

ACCOUNT = "system:operator"
USER = f"system:serviceaccount:{ACCOUNT}"
SINCE = datetime(2026, 1, 1, 12, tzinfo=UTC)
NUMBERS = iter(range(1_000_000))


def entry(verb: str = "get", resource: str = "secrets", namespace: str = "", **more: Any) -> str:
    """A line of the audit log. `name`, `group`, `sub`; `code`, `decision`, `at`, `stage`, `uri`, `id`, `user`."""
    asked = {"resource": resource, "apiGroup": more.get("group"), "namespace": namespace or None}
    asked |= {"subresource": more.get("sub"), "name": more.get("name")}
    code = more.get("code", 200)
    status = {"code": code, "message": "it is so", "details": {"causes": more.get("causes", [])}}
    return json.dumps(
        {
            "auditID": more.get("id", str(next(NUMBERS))),
            "stage": more.get("stage", "ResponseComplete"),
            "verb": verb,
            "requestURI": more.get("uri", "/api"),
            "user": {"username": more.get("user", USER)},
            "objectRef": {key: value for key, value in asked.items() if value} if resource else None,
            "responseStatus": {"code": code} if code < 400 else status,
            "requestReceivedTimestamp": more.get("at", "2026-01-01T12:00:01.000000Z"),
            "annotations": {
                "authorization.k8s.io/decision": more.get("decision", "forbid" if code == 403 else "allow")
            },
        }
    )


def log(*lines: str) -> Log:
    return read(lines, ACCOUNT, SINCE)


def role(name: str, *rules: dict[str, Any], namespace: str = "") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"kind": "Role" if namespace else "ClusterRole", "metadata": metadata, "rules": rules}


def binding(to: str, *, namespace: str = "", kind: str = "ClusterRole", subject: Any = None) -> dict[str, Any]:
    subject = subject or {"kind": "ServiceAccount", "namespace": "system", "name": "operator"}
    return {
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": "b", "namespace": namespace} if namespace else {"name": "b"},
        "roleRef": {"kind": kind, "name": to},
        "subjects": [subject],
    }


def rule(resources: str, verbs: str, group: str = "", **more: Any) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split(), **more}


# What was done.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (entry("get", "secrets", "a", name="s"), [Access("", "secrets", "get", "a", "s")]),
        (entry("list", "secrets"), [Access("", "secrets", "list", "")]),
        (
            entry("patch", "tinybirdproxies", "a", name="p", group="tinybird-proxy.io", sub="status"),
            [Access("tinybird-proxy.io", "tinybirdproxies/status", "patch", "a", "p")],
        ),
        # A POST's name is in its body, which the authorizer does not read; a subresource's is in the path.
        (entry("create", "secrets", "a", name="s", code=201), [Access("", "secrets", "create", "a")]),
        (
            entry("create", "pods", "a", name="p", sub="eviction", code=201),
            [Access("", "pods/eviction", "create", "a", "p")],
        ),
        # An apply that makes the object is checked for both.
        (
            entry("patch", "secrets", "a", name="s", code=201),
            [Access("", "secrets", "patch", "a", "s"), Access("", "secrets", "create", "a", "s")],
        ),
        (entry("get", "", uri="/apis?timeout=3s"), [Access("", "/apis", "get", "")]),
    ],
)
def test_an_entry_of_the_log_is_read_as_the_authorizer_saw_it(line: str, expected: list[Access]) -> None:
    assert [use.access for use in log(line).uses] == expected


def test_a_watch_that_is_told_of_twice_is_one_request_and_one_that_is_still_open_is_one_too() -> None:
    begun, ended = (entry("watch", id="1", stage=stage) for stage in ("ResponseStarted", "ResponseComplete"))
    (use,) = log(begun, ended, entry("watch", id="2", stage="ResponseStarted")).uses
    assert use.count == 2


def test_others_what_was_before_and_half_a_line_do_not_count() -> None:
    longer_name = entry(user=f"{USER}-2")
    # The same second as SINCE, and written with fractions or without.
    times = ["2026-01-01T11:59:59.999999Z", "2026-01-01T12:00:00.000001Z", "2026-01-01T12:00:00Z"]
    lines = [entry(at=at) for at in times]
    (use,) = log(longer_name, *lines, entry()[:40]).uses
    assert use.count == 2


@pytest.mark.parametrize(
    ("more", "outcome"),
    [
        ({"code": 200}, "allowed"),
        ({"code": 404}, "allowed"),
        ({"code": 409}, "allowed"),
        ({"code": 403}, "refused"),
        ({"code": 403, "decision": "allow"}, "denied"),
        ({"code": 403, "decision": "allow", "causes": [{"reason": "NamespaceTerminating"}]}, "allowed"),
    ],
)
def test_what_came_of_a_request_is_the_authorizers_word(more: dict[str, Any], outcome: str) -> None:
    (use,) = log(entry(**more)).uses
    assert use.outcome == outcome


def _refused_at(second: int, *before: str) -> list[str]:
    refused = entry("get", "secrets", code=403, at=f"2026-01-01T12:01:{second:02}.000000Z")
    return [use.outcome for use in log(*before, refused).uses]


@pytest.mark.parametrize(
    ("name", "code", "second", "outcomes"),
    [
        ("operator", 200, 5, []),
        ("operator", 200, 45, ["refused"]),
        ("operator", 404, 5, ["refused"]),
        ("other", 200, 5, ["refused"]),
    ],
)
def test_what_is_refused_right_after_its_role_was_deleted_is_none(
    name: str, code: int, second: int, outcomes: list[str]
) -> None:
    at = "2026-01-01T12:01:00.000000Z"
    gone = entry("delete", "clusterroles", name=name, code=code, at=at, user="admin", group="rbac.authorization.k8s.io")
    assert _refused_at(second, gone) == outcomes


def test_the_test_of_a_namespace_is_its_field_manager() -> None:
    uri = "/api/v1/namespaces/e2e-1?fieldManager=test_of%5Bthis%5D"
    admin = {"user": "admin", "uri": uri, "name": "e2e-1", "namespace": "e2e-1"}
    told = log(entry("patch", "namespaces", **admin))
    assert told.tests == {"e2e-1": "test_of[this]"}
    assert log(entry("patch", "namespaces", **{**admin, "uri": "/a?fieldManager=kubectl-label"})).tests == {}


# What is granted.


def test_rules_are_taken_apart_into_what_each_allows() -> None:
    made = role("r", rule("pods secrets", "get list"), rule("leases", "update", "c.io", resourceNames=["leader"]))
    assert [str(grant.access) for grant in grants([made, binding("r")], ACCOUNT)] == [
        "get pods",
        "list pods",
        "get secrets",
        "list secrets",
        'update leases.c.io "leader"',
    ]


@pytest.mark.parametrize(
    ("objects", "namespaces"),
    [
        ([role("r", rule("pods", "get")), binding("r")], [EVERYWHERE]),
        ([role("r", rule("pods", "get")), binding("r", namespace="a")], ["a"]),
        ([role("r", rule("pods", "get"), namespace="a"), binding("r", namespace="a", kind="Role")], ["a"]),
        ([role("r", rule("pods", "get"), namespace="b"), binding("r", namespace="a", kind="Role")], []),
        ([role("r", rule("pods", "get"))], []),
        ([binding("r")], []),
        (
            [role("r", rule("pods", "get")), binding("r", kind="ClusterRole", namespace="a"), binding("r")],
            [EVERYWHERE, "a"],
        ),
    ],
    ids=["everywhere", "bound in one", "a role", "of another namespace", "not bound", "gone", "both"],
)
def test_a_rule_holds_where_it_is_bound(objects: list[dict[str, Any]], namespaces: list[str]) -> None:
    assert sorted(grant.access.namespace for grant in grants(objects, ACCOUNT)) == namespaces


@pytest.mark.parametrize(
    ("subject", "is_own"),
    [
        ({"kind": "ServiceAccount", "namespace": "system", "name": "operator"}, [True]),
        ({"kind": "ServiceAccount", "namespace": "other", "name": "operator"}, []),
        ({"kind": "User", "name": USER}, [True]),
        ({"kind": "User", "name": "operator"}, []),
        ({"kind": "Group", "name": "system:authenticated"}, [False]),
        ({"kind": "Group", "name": "system:serviceaccounts:system"}, [False]),
        ({"kind": "Group", "name": "system:serviceaccounts:other"}, []),
        ({"kind": "Group", "name": "system:masters"}, []),
    ],
)
def test_what_is_its_own_and_what_everyone_has(subject: dict[str, str], is_own: list[bool]) -> None:
    made = grants([role("r", rule("pods", "get")), binding("r", subject=subject)], ACCOUNT)
    assert [grant.is_own for grant in made] == is_own


DONE = Access("apps", "deployments/scale", "patch", "a", "events")


@pytest.mark.parametrize(
    ("granted", "covers"),
    [
        (Access("apps", "deployments/scale", "patch", EVERYWHERE), True),
        (Access("apps", "deployments/scale", "patch", "a", "events"), True),
        (Access("*", "*/scale", "*", EVERYWHERE), True),
        (Access("*", "*", "*", EVERYWHERE), True),
        (Access("apps", "deployments", "patch", EVERYWHERE), False),
        (Access("", "deployments/scale", "patch", EVERYWHERE), False),
        (Access("apps", "deployments/scale", "update", EVERYWHERE), False),
        (Access("apps", "deployments/scale", "patch", "b"), False),
        (Access("apps", "deployments/scale", "patch", "a", "other"), False),
        (Access("", "/*", "patch", EVERYWHERE), False),
    ],
)
def test_rules_are_read_as_rbac_reads_them(granted: Access, covers: bool) -> None:
    assert granted.covers(DONE) is covers


@pytest.mark.parametrize(
    ("granted", "done", "covers"),
    [
        (Access("", "/metrics", "get", EVERYWHERE), Access("", "/metrics", "get", ""), True),
        (Access("", "/apis/*", "get", EVERYWHERE), Access("", "/apis/apps/v1", "get", ""), True),
        (Access("", "/apis", "get", EVERYWHERE), Access("", "/apis/apps/v1", "get", ""), False),
        (Access("", "*", "*", EVERYWHERE), Access("", "/metrics", "get", ""), False),
        (Access("", "pods", "list", "a"), Access("", "pods", "list", ""), False),
        (Access("", "leases", "create", "a", "leader"), Access("", "leases", "create", "a"), False),
    ],
    ids=["url", "urls", "another url", "resources are no urls", "one namespace is not the cluster", "create by name"],
)
def test_what_looks_alike_is_not_the_same(granted: Access, done: Access, covers: bool) -> None:
    assert granted.covers(done) is covers


# Beside each other.


def compared(*lines: str) -> Comparison:
    objects = [
        role("operator", rule("secrets", "get list"), rule("p", "patch delete", "t.io")),
        binding("operator"),
        role("discovery", {"nonResourceURLs": ["/api", "/apis/*"], "verbs": ["get"]}),
        binding("discovery", subject={"kind": "Group", "name": "system:authenticated"}),
    ]
    made = entry("patch", "namespaces", "n1", name="n1", user="admin", uri="/a?fieldManager=test_a")
    return compare(grants(objects, ACCOUNT), log(made, *lines))


USED = (
    entry("list", "secrets", at="2026-01-01T12:00:01Z"),
    entry("get", "secrets", "n1", name="s", at="2026-01-01T12:00:03Z"),
    entry("get", "secrets", "n0", name="s", at="2026-01-01T12:00:02Z"),
    entry("patch", "p", "n1", name="e", group="t.io"),
    entry("get", "", uri="/apis/apps/v1"),
)


def test_all_that_was_used_and_nothing_else_is_no_problem() -> None:
    done = entry("delete", "p", "n1", name="e", group="t.io")
    assert compared(*USED, done).problems() == []


def test_a_rule_that_nobody_used_is_a_problem_unless_it_is_excused() -> None:
    found = compared(*USED)
    assert found.problems() == ["delete p.t.io: granted (everywhere, ClusterRole operator) and never used"]
    assert found.problems({"delete p.t.io": "by hand only"}) == []


def test_an_excuse_that_is_not_needed_is_a_problem() -> None:
    excused = {"delete p.t.io": "", "list secrets": "used", "delete secrets": "not granted"}
    assert compared(*USED).problems(excused) == [
        "delete secrets: excused, but used or not granted",
        "list secrets: excused, but used or not granted",
    ]


def test_what_was_answered_with_403_is_a_problem_with_the_test_that_saw_it() -> None:
    refused = entry("delete", "secrets", "n1", name="s", code=403)
    denied = entry("patch", "p", "n0", name="e", group="t.io", code=403, decision="allow")
    assert compared(*USED, refused, denied).problems({"delete p.t.io": ""}) == [
        'delete secrets "s" (test_a): refused, 1 times: it is so',
        'patch p.t.io "e" (outside of tests (n0)): denied, 1 times: it is so',
    ]


def test_what_was_allowed_and_is_granted_no_more_is_a_problem() -> None:
    found = compared(*USED, entry("list", "pods"))
    assert found.problems({"delete p.t.io": ""}) == [
        "list pods (outside of tests (cluster)): used, and no rule allows it now"
    ]


def test_the_table_names_for_each_rule_where_it_was_used_and_by_which_test_first() -> None:
    refused = entry("delete", "secrets", "n1", name="s", code=403)
    assert compared(*USED, refused, entry("list", "pods")).table().splitlines() == [
        "GRANTED            WHERE       USED          REQUESTS  FIRST USED BY",
        "get secrets        everywhere  2 namespaces  2         test_a",
        "list secrets       everywhere  cluster       1         outside of tests (cluster)",
        "delete p.t.io      everywhere  never         0         -",
        "patch p.t.io       everywhere  n1            1         test_a",
        "get /apis/apps/v1  everyone's  cluster       1         outside of tests (cluster)",
        "list pods          NO RULE     cluster       1         outside of tests (cluster)",
        "delete secrets     REFUSED     n1            1         test_a",
    ]


def test_a_rule_that_two_roles_give_is_used_in_both() -> None:
    objects = [role("one", rule("pods", "get")), role("two", rule("pods", "get")), binding("one"), binding("two")]
    found = compare(grants(objects, ACCOUNT), log(entry("get", "pods", "a", name="p")))
    assert [grant.role for grant in found.granted] == ["ClusterRole one", "ClusterRole two"]
    assert found.problems() == []
    assert Grant(Access("", "pods", "get", EVERYWHERE), "ClusterRole one") in found.granted
