"""Least privilege, from evidence: what a service account may do, what it did, and in which test first.

    found = of_the_cluster(audit_log, "tinybird-system:tinybird-proxy-operator", since)
    print(found.table())
    assert found.problems({"update tinybirdproxies.tinybird-proxy.io/finalizers": "only OpenShift asks for it"}) == []

What was done is read from the API server's audit log, what may be done from the RBAC objects. Whether a request was
allowed is the API server's word, never our own reading of the rules.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

from tests.e2e.kubectl import run

TEST_ANNOTATION: Final = "tinybird-proxy.io/test"
EVERYWHERE: Final = "*"
_RBAC: Final = "roles,clusterroles,rolebindings,clusterrolebindings"
_PODS_GO_WITHIN: Final = timedelta(seconds=30)
_DECISION: Final = "authorization.k8s.io/decision"
Object = Mapping[str, Any]


@dataclass(frozen=True, order=True, slots=True)
class Access:
    """One thing that is done, or that a rule allows; to a URL that is no resource, if ``resource`` begins with a /."""

    api_group: str
    resource: str
    """With the subresource, as rules have it: `pods/eviction`."""
    verb: str
    namespace: str
    """Where; empty for what is asked of the whole cluster. In a rule, ``EVERYWHERE`` for both and all namespaces."""
    name: str = ""
    """Of the object, if the API server knows it when it decides. In a rule, empty for all."""

    def __str__(self) -> str:
        resource, slash, subresource = self.resource.partition("/")
        group = f".{self.api_group}" if self.api_group else ""
        what = f"{resource}{group}{slash}{subresource}" if resource else self.resource
        return f"{self.verb} {what}" + (f' "{self.name}"' if self.name else "")

    @property
    def place(self) -> str:
        """Where, in words."""
        return {"": "cluster", EVERYWHERE: "everywhere"}.get(self.namespace, self.namespace)

    def covers(self, done: "Access") -> bool:
        """Whether this, as a rule, allows what was done, as RBAC reads rules."""
        return (
            self.namespace in (EVERYWHERE, done.namespace)
            and self.verb in ("*", done.verb)
            and self._covers_resource(done)
            and self.name in ("", done.name)
        )

    def _covers_resource(self, done: "Access") -> bool:
        if self.resource.startswith("/") or done.resource.startswith("/"):
            is_prefix = self.resource.endswith("*") and done.resource.startswith(self.resource[:-1])
            return self.resource.startswith("/") and (self.resource == done.resource or is_prefix)
        _, slash, subresource = done.resource.partition("/")
        resources = ("*", done.resource, f"*/{subresource}" if slash else done.resource)
        return self.api_group in ("*", done.api_group) and self.resource in resources


@dataclass(frozen=True, slots=True)
class Use:
    """What was done, how often, and what came of it."""

    access: Access
    outcome: Literal["allowed", "refused", "denied"]
    """Refused by the authorizer, or allowed by it and denied with 403 by something behind it."""
    first_at: datetime
    count: int
    message: str = ""
    """What the API server said to the first, if it was no success."""


@dataclass(frozen=True, order=True, slots=True)
class Grant:
    """One access that a role gives to the service account."""

    access: Access
    role: str
    """Kind and name."""
    is_own: bool = field(default=True, compare=False)
    """False: every service account, or everyone, has it as well."""


@dataclass(frozen=True, slots=True)
class Log:
    """What an audit log tells."""

    uses: Sequence[Use]
    tests: Mapping[str, str]
    """The test of each namespace that was made by one."""


def read(lines: Iterable[str], service_account: str, since: datetime) -> Log:
    """What ``namespace:name`` did since then, in the order in which each was done first.

    Where a part is turned off or uninstalled its roles go a moment before its pods do: what it is refused then is none.
    """
    user, name = user_of(service_account), service_account.rpartition(":")[2]
    turned_off_at: datetime | None = None
    found: dict[tuple[Access, str], Use] = {}
    tests: dict[str, str] = {}
    seen: set[str] = set()
    for line in lines:
        if user not in line and '"namespaces"' not in line and '"delete"' not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that is being written
        _note_test(entry, tests)
        at = datetime.fromisoformat(entry["requestReceivedTimestamp"])
        if _deletes_role(entry, name):
            turned_off_at = at
        # A watch is told of when it begins and once more when it ends.
        if entry["user"]["username"] != user or at < since or entry["auditID"] in seen:
            continue
        seen.add(entry["auditID"])
        outcome = _outcome(entry)
        if outcome == "refused" and turned_off_at is not None and at - turned_off_at < _PODS_GO_WITHIN:
            continue
        message = "" if outcome == "allowed" else entry["responseStatus"].get("message", "")
        if outcome == "denied" and _is_namespace_ending(entry):
            outcome = "allowed"
        for access in accesses(entry):
            if (use := found.get((access, outcome))) is None:
                use = Use(access, outcome, at, 0, message)
            found[access, outcome] = replace(use, count=use.count + 1, first_at=min(use.first_at, at))
    return Log(sorted(found.values(), key=lambda use: use.first_at), tests)


def accesses(entry: Object) -> Iterator[Access]:
    """What an entry of the audit log was checked for."""
    verb = entry["verb"]
    asked = entry.get("objectRef")
    if asked is None or "resource" not in asked:
        yield Access("", urlsplit(entry["requestURI"]).path, verb, "")
        return
    resource = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
    # The log has the name of what was made; when the rules are read, it is in a body that nobody has looked at.
    name = "" if verb == "create" and "/" not in resource else asked.get("name", "")
    access = Access(asked.get("apiGroup", ""), resource, verb, asked.get("namespace", ""), name)
    yield access
    if verb in ("patch", "update") and entry.get("responseStatus", {}).get("code") == 201:
        yield replace(access, verb="create")  # the API server checks it too, and does not log it by itself


def _outcome(entry: Object) -> Literal["allowed", "refused", "denied"]:
    is_403 = entry.get("responseStatus", {}).get("code") == 403
    decision = entry.get("annotations", {}).get(_DECISION, "forbid" if is_403 else "allow")
    return "refused" if decision == "forbid" else "denied" if is_403 else "allowed"


def _deletes_role(entry: Object, name: str) -> bool:
    asked = entry.get("objectRef") or {}
    if entry["verb"] != "delete" or asked.get("resource") not in _RBAC.split(","):
        return False
    return str(asked.get("name", "")) == name and entry.get("responseStatus", {}).get("code") == 200


def _is_namespace_ending(entry: Object) -> bool:
    """Nobody may make anything in a namespace that is on its way out."""
    causes = entry["responseStatus"].get("details", {}).get("causes", ())
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


def _note_test(entry: Object, tests: dict[str, str]) -> None:
    """The log has no annotations; a test that makes its namespace says who it is as the field manager."""
    asked = entry.get("objectRef") or {}
    if asked.get("resource") != "namespaces" or entry["verb"] not in ("create", "patch"):
        return
    manager = parse_qs(urlsplit(entry["requestURI"]).query).get("fieldManager", [""])[0]
    if manager.startswith("test_"):
        tests[asked["name"]] = manager


def user_of(service_account: str) -> str:
    """The user's name of ``namespace:name``."""
    return f"system:serviceaccount:{service_account}"


def grants(objects: Iterable[Object], service_account: str) -> list[Grant]:
    """What the roles and bindings among these objects give to ``namespace:name``, sorted."""
    objects = list(objects)
    roles: dict[tuple[str, str, str], Sequence[Object]] = {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each.get("rules") or ()
        for each in objects
        if each["kind"] in ("Role", "ClusterRole")
    }
    found: dict[Grant, bool] = {}
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        to_us = [_names(subject, service_account) for subject in binding.get("subjects") or ()]
        if not any(to_us):
            continue
        namespace = binding["metadata"].get("namespace", "")
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        rules = roles.get((kind, namespace if kind == "Role" else "", name), ())
        for access in _expanded(rules, namespace or EVERYWHERE):
            grant = Grant(access, f"{kind} {name}")
            found[grant] = found.get(grant, False) or "own" in to_us
    return sorted(replace(grant, is_own=is_own) for grant, is_own in found.items())


def _names(subject: Object, service_account: str) -> Literal["own", "group", ""]:
    """Whether a binding's subject is this service account, or a group that it is in."""
    namespace, _, name = service_account.partition(":")
    if subject["kind"] == "ServiceAccount":
        return "own" if (subject.get("namespace"), subject["name"]) == (namespace, name) else ""
    if subject["kind"] == "User":
        return "own" if subject["name"] == user_of(service_account) else ""
    groups = ("system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    return "group" if subject["name"] in groups else ""


def _expanded(rules: Iterable[Object], namespace: str) -> Iterator[Access]:
    """Each access of the rules by itself."""
    for rule in rules:
        for verb in rule["verbs"]:
            for url in rule.get("nonResourceURLs") or ():
                yield Access("", url, verb, namespace)
            for group in rule.get("apiGroups") or ():
                for resource in rule.get("resources") or ():
                    for name in rule.get("resourceNames") or ("",):
                        yield Access(group, resource, verb, namespace, name)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was granted beside what was used."""

    granted: Mapping[Grant, Sequence[Use]]
    """Each grant of its own, with the uses that it allows, in the order in which they came first."""
    everyones: Sequence[Use]
    """Allowed by what every service account, or everyone, may do."""
    unexplained: Sequence[Use]
    """Allowed then, and by no rule of now."""
    refused: Sequence[Use]
    """Not granted."""
    denied: Sequence[Use]
    """Granted, and answered with 403 all the same."""
    tests: Mapping[str, str]

    def problems(self, excused: Mapping[str, str] | None = None) -> list[str]:
        """A sentence for each rule that nobody needed, and for what was refused, denied or is granted no more.

        ``excused`` are reasons by access, as it is printed, for what no test can use; an excuse that is not needed is
        a problem as well.
        """
        excused = excused or {}
        unused = [grant for grant, uses in self.granted.items() if not uses]
        found = [
            f"{grant.access}: granted ({grant.access.place}, {grant.role}) and never used"
            for grant in unused
            if str(grant.access) not in excused
        ]
        unneeded = set(excused) - {str(grant.access) for grant in unused}
        found += [f"{what}: excused, but used or not granted" for what in sorted(unneeded)]
        found += [f"{use.access} ({self._by(use)}): used, and no rule allows it now" for use in self.unexplained]
        for use in (*self.refused, *self.denied):
            found.append(f"{use.access} ({self._by(use)}): {use.outcome}, {use.count} times: {use.message}")
        return found

    def table(self) -> str:
        """Each grant with where and how often it was used and by which test first, and what was used without one."""
        lines = [("GRANTED", "WHERE", "USED", "REQUESTS", "FIRST USED BY")]
        for grant, uses in sorted(self.granted.items()):
            lines.append((str(grant.access), grant.access.place, *self._usage(uses)))
        others = {"everyone's": self.everyones, "NO RULE": self.unexplained}
        others |= {"REFUSED": self.refused, "DENIED": self.denied}
        for what, used in others.items():
            for access, uses in _by_kind(used).items():
                lines.append((str(access), what, *self._usage(uses)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _usage(self, uses: Sequence[Use]) -> tuple[str, str, str]:
        if not uses:
            return "never", "0", "-"
        namespaces = {use.access.namespace for use in uses}
        where = ["cluster"] if "" in namespaces else []
        named = sorted(namespaces - {""})
        if named:
            where.append(named[0] if len(named) == 1 else f"{len(named)} namespaces")
        by_tests = [use for use in uses if use.access.namespace in self.tests]
        return ", ".join(where), str(sum(use.count for use in uses)), self._by((by_tests or uses)[0])

    def _by(self, use: Use) -> str:
        return self.tests.get(use.access.namespace, f"outside of tests ({use.access.place})")


def _by_kind(uses: Iterable[Use]) -> dict[Access, list[Use]]:
    """Without regard to where and to which object."""
    found: dict[Access, list[Use]] = {}
    for use in uses:
        found.setdefault(replace(use.access, namespace="", name=""), []).append(use)
    return dict(sorted(found.items()))


def compare(granted: Iterable[Grant], log: Log) -> Comparison:
    """Put what was used beside what allows it."""
    granted = list(granted)
    done = [use for use in log.uses if use.outcome != "refused"]

    def by(*, is_own: bool) -> dict[Grant, list[Use]]:
        ours = [grant for grant in granted if grant.is_own is is_own]
        return {grant: [use for use in done if grant.access.covers(use.access)] for grant in ours}

    own = by(is_own=True)
    left = _without(done, own)
    unexplained = _without(left, by(is_own=False))
    return Comparison(
        granted=own,
        everyones=[use for use in left if use not in unexplained],
        unexplained=unexplained,
        refused=[use for use in log.uses if use.outcome == "refused"],
        denied=[use for use in log.uses if use.outcome == "denied"],
        tests=log.tests,
    )


def _without(uses: Sequence[Use], covered: Mapping[Grant, Sequence[Use]]) -> list[Use]:
    accesses_covered = {use.access for each in covered.values() for use in each}
    return [use for use in uses if use.access not in accesses_covered]


def of_the_cluster(audit_log: Path, service_account: str, since: datetime) -> Comparison:
    """Of the cluster that KUBECONFIG names, which wrote this log. The roles are those of now."""
    objects = json.loads(run("kubectl", "get", _RBAC, "--all-namespaces", "--output", "json"))["items"]
    namespaces = json.loads(run("kubectl", "get", "namespaces", "--output", "json"))["items"]
    with audit_log.open() as lines:
        log = read(lines, service_account, since)
    annotated = {
        each["metadata"]["name"]: test
        for each in namespaces
        if (test := each["metadata"].get("annotations", {}).get(TEST_ANNOTATION))
    }
    return compare(grants(objects, service_account), Log(log.uses, {**annotated, **log.tests}))
