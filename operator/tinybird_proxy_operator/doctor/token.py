"""Which token the pods use, and what Tinybird says to it. Only hashes are known here. Pure."""

import shlex
from collections.abc import Iterator, Sequence

from tinybird_proxy_operator.doctor.facts import Facts, Finding, Level, PodSeen
from tinybird_proxy_operator.names import USE_LABEL, USE_TOKEN, Reason, some
from tinybird_proxy_operator.sidecars.app_pods import State
from tinybird_proxy_operator.spec import SecretKey

# Kubelet looks at mounted Secrets once a minute, and may know an old one for as long again.
SECRET_REACHES_PODS_WITHIN_S = 120


def expected_hash(facts: Facts) -> str | None:
    """The hash of the token in the Secret: as read, or else as the operator last said."""
    if facts.expected_token_hash is not None or any(each.problem for each in facts.secrets if not each.optional):
        return facts.expected_token_hash
    said = (facts.status.get("token") or {}).get("expectedHash")
    return None if said is None else str(said)


def in_words(pod: PodSeen, expected: str | None) -> str:
    """Which token a pod uses, for a table."""
    if pod.answer is None:
        return "unknown" if pod.runs else "-"
    report = pod.answer.report
    if report.token_hash is None:
        return "none"
    verdict = "accepted" if report.token_accepted else "not used yet"
    if report.token_denied:
        verdict = "refused"
    old = ", not the Secret's" if expected is not None and report.token_hash != expected else ""
    tried = ""
    if pod.answer.candidate_hash is not None:
        tried = f"; {pod.answer.candidate_hash} {'refused' if report.candidate_rejected else 'is tried next'}"
    return f"{report.token_hash} {verdict}{old}{tried}"


def token_findings(facts: Facts, ref: SecretKey | None) -> Iterator[Finding]:
    """What is to say of the token that rows go to Tinybird with. ``ref`` None: the clients' own."""
    if ref is None:
        what = "Each client's own token is passed on to Tinybird: the pods have none."
        yield Finding(level=Level.NOTE, reason=Reason.CLIENTS_OWN_TOKENS, what=what)
        return
    expected = expected_hash(facts)
    answers = [(pod, pod.answer) for pod in facts.pods or () if pod.answer is not None]
    secret = f"Secret {ref.name}"
    mend, put = _put(facts, ref)
    rejected = [pod for pod, answer in answers if answer.report.candidate_rejected]
    if rejected:
        yield Finding(
            level=Level.PROBLEM,
            reason=Reason.CANDIDATE_REJECTED,
            what=f"Tinybird refuses the changed token of {secret}: {_which(rejected)} keep using the one before it.",
            why=f"{in_words(rejected[0], expected)}. Rows are delivered with the old token; nothing is held.",
            next=f"{mend} It is tried with the next batch. A pod that starts before knows only the refused one.",
            commands=put,
        )
    denied = [pod for pod, answer in answers if answer.report.token_denied]
    if denied:
        yield Finding(
            level=Level.PROBLEM,
            reason=Reason.REJECTED,
            what=f"Tinybird refuses the token of {secret} in {_which(denied)}: rows are kept there, not delivered.",
            why=f"{in_words(denied[0], expected)}.",
            next=f"{mend} It is tried at once, without a restart.",
            commands=put,
        )
    outdated = [
        pod
        for pod, answer in answers
        if expected is not None and expected not in (answer.report.token_hash, answer.candidate_hash)
    ]
    if outdated:
        yield _outdated(facts, outdated, expected, ref)
    if rejected or denied or not answers:
        return
    current = [pod for pod, answer in answers if answer.report.token_hash == expected]
    share = f"{len(current)} of {len(facts.pods or ())} pods have it"
    if any(answer.report.token_accepted for _, answer in answers):
        what = f"Tinybird accepts the token of {secret}, {expected or 'of unknown hash'}: {share}."
        yield Finding(level=Level.NOTE, reason=Reason.ACCEPTED, what=what)
    else:
        what = f"No row was sent with the token of {secret} yet, {expected or 'of unknown hash'}: {share}."
        yield Finding(
            level=Level.NOTE,
            reason=Reason.NOT_USED_YET,
            what=what,
            next="Send an event to see whether Tinybird accepts it, or ask without one.",
            commands=[
                facts.kubectl(f"exec {answers[0][0].name}{_of(answers[0][0])} -- tinybird-proxy check --upstream")
            ],
        )


def _outdated(facts: Facts, pods: Sequence[PodSeen], expected: str | None, ref: SecretKey) -> Finding:
    after = f"A changed Secret reaches the pods within {SECRET_REACHES_PODS_WITHIN_S} s. If it lasts, ask kubelet:"
    describe = facts.kubectl(f"describe pod {pods[0].name}")
    follow, commands = _put(facts, ref) if _is_immutable(facts, ref) else (after, [describe])
    if any(pod.app is not None and pod.app.state is State.STALE for pod in pods):
        follow = f"A pod with the sidecar of before may have another Secret: restart it. {follow}"
    return Finding(
        level=Level.PROBLEM,
        reason="TokenOutdated",
        what=f"The token of Secret {ref.name} ({expected}) is not the one in use in {_which(pods)}.",
        why=f"{in_words(pods[0], expected)}.",
        next=follow,
        commands=commands,
    )


def _is_immutable(facts: Facts, ref: SecretKey) -> bool:
    return any(secret.immutable for secret in facts.secrets if secret.name == ref.name)


def _put(facts: Facts, ref: SecretKey) -> tuple[str, list[str]]:
    """How to give the proxies another token: what to do, and the commands for it."""
    # From a file: what stands in a command line is seen by others, and kept in the shell's history.
    source = f"--from-file={shlex.quote(ref.key)}=FILE"
    good = "a token that may append, of the region of spec.tinybird.url,"
    if _is_immutable(facts, ref):
        return (
            f"Secret {ref.name} is immutable: put {good} into one of another name, and name it in"
            " spec.tinybird.tokenSecretRef.",
            [
                facts.kubectl(f"create secret generic NEW-NAME {source}"),
                facts.kubectl(f"label secret NEW-NAME {USE_LABEL}={USE_TOKEN}"),
                facts.kubectl(f"edit tinybirdproxy {facts.name}"),
            ],
        )
    write = f"create secret generic {shlex.quote(ref.name)} {source} --dry-run=client --output=yaml"
    return (
        f"Put {good} there under the key {ref.key}.",
        [f"{facts.kubectl(write)} | {facts.kubectl('apply --filename=-')}"],
    )


def _of(pod: PodSeen) -> str:
    return "" if pod.container_name is None else f" --container={pod.container_name}"


def _which(pods: Sequence[PodSeen]) -> str:
    return some([pod.name for pod in pods])
