"""Renewal as a table of states, and as a life of years in which no client is ever shown what it does not know."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tinybird_proxy_operator.serving.certificates import ends_at, is_signed_by
from tinybird_proxy_operator.serving.renewal import Issued, Lifetimes, advance, from_data, to_data

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("metrics.system.svc", "metrics")
LIFETIMES = Lifetimes(serving_s=90, overlap_s=10)


def step(issued: Issued | None, at_s: float, *, registered: str | None = None, held: Issued | None = None) -> Issued:
    now = NOW + timedelta(seconds=at_s)
    return advance(issued, names=NAMES, lifetimes=LIFETIMES, now=now, registered=registered, held=held)


@pytest.fixture(scope="module")
def first() -> Issued:
    return step(None, 0)


def test_the_first_ones_are_made_and_then_kept(first: Issued) -> None:
    assert is_signed_by(first.serving.certificate, first.authority.certificate)
    assert first.bundle == first.authority.certificate
    assert step(first, 59) is first


def test_a_serving_certificate_is_renewed_by_the_same_ca_after_two_thirds_of_its_life(first: Issued) -> None:
    renewed = step(first, 60)
    assert renewed.serving != first.serving
    assert (renewed.authority, renewed.bundle) == (first.authority, first.bundle)
    assert ends_at(renewed.serving.certificate) == NOW + timedelta(seconds=150)


def test_other_names_need_another_serving_certificate(first: Issued) -> None:
    named = advance(first, names=("other.svc",), lifetimes=LIFETIMES, now=NOW, registered=None)
    assert named.serving != first.serving
    assert named.authority == first.authority


def test_a_ca_is_known_before_it_signs_and_forgotten_after(first: Issued) -> None:
    announced = step(first, 240, registered=first.bundle)
    assert announced.next_authority is not None
    assert announced.authority == first.authority
    assert announced.bundle.count("BEGIN CERTIFICATE") == 2
    # It waits for whoever has to know it, for as long as that takes.
    assert step(announced, 249, registered=first.bundle).registered_at is None
    known = step(announced, 250, registered=announced.bundle)
    assert known.registered_at == NOW + timedelta(seconds=250)
    assert step(known, 259, registered=known.bundle).authority == first.authority
    signing = step(known, 260, registered=known.bundle)
    assert signing.authority == announced.next_authority
    assert is_signed_by(signing.serving.certificate, announced.next_authority.certificate)
    assert signing.bundle == announced.bundle
    assert step(signing, 269, registered=signing.bundle).previous == first.authority.certificate
    alone = step(signing, 270, registered=signing.bundle)
    assert alone.bundle == announced.next_authority.certificate
    assert alone.serving == signing.serving


def test_where_nobody_knows_us_nobody_is_waited_for(first: Issued) -> None:
    announced = step(first, 240, registered=None)
    assert step(announced, 240, registered=None).registered_at == NOW + timedelta(seconds=240)


def test_a_serving_certificate_is_renewed_while_a_new_ca_waits(first: Issued) -> None:
    waiting = step(step(first, 240, registered=first.bundle), 300, registered=first.bundle)
    assert is_signed_by(waiting.serving.certificate, first.authority.certificate)
    assert ends_at(waiting.serving.certificate) == ends_at(first.authority.certificate)
    assert waiting.next_authority is not None


def test_what_has_ended_is_made_anew(first: Issued) -> None:
    again = step(first, 360)
    assert again.authority != first.authority
    assert again.next_authority is None


def test_a_deleted_state_is_put_back_and_leads_to_a_new_ca(first: Issued) -> None:
    restored = step(None, 10, held=first)
    assert (restored.authority, restored.serving) == (first.authority, first.serving)
    assert restored.next_authority is not None
    assert step(None, 11, held=restored) is restored
    assert step(None, 400, held=first).authority != first.authority


def test_a_state_is_read_as_it_was_written(first: Issued) -> None:
    announced = step(first, 240, registered=first.bundle)
    known = step(announced, 241, registered=announced.bundle)
    signing = step(known, 260, registered=known.bundle)
    for issued in (first, announced, known, signing):
        assert from_data(to_data(issued)) == issued


def test_a_state_that_is_not_whole_is_none(first: Issued) -> None:
    data = to_data(first)
    other = to_data(step(None, 0))
    assert from_data({}) is None
    assert from_data({**data, "tls.key": "%"}) is None
    assert from_data({**data, "tls.key": other["tls.key"]}) is None
    assert from_data({**data, "ca.crt": other["ca.crt"], "ca.key": other["ca.key"]}) is None
    assert from_data({**data, "changed-at": other["ca.crt"]}) is None
    assert from_data({**data, "previous-ca.crt": data["changed-at"]}) is None
    assert from_data({**data, "anything": ""}) == first


def test_through_years_nobody_is_shown_what_it_does_not_know() -> None:
    """Two replicas look now and then, the API server learns of the bundle late, and is now and then away."""
    issued, registered = step(None, 0), ""
    shown = [issued, issued]
    authorities = set()
    for second in range(0, 2000, 2):
        # Each replica shows what it read at most 8 s ago: an overlap is longer than that.
        shown[second // 2 % 2] = issued
        if second % 6 == 0 and not 700 <= second < 760:
            registered = issued.bundle
        issued = step(issued, second, registered=registered)
        authorities.add(issued.authority.certificate)
        for replica in shown:
            if registered:
                known = [f"-----BEGIN{part}" for part in registered.split("-----BEGIN") if part]
                assert any(is_signed_by(replica.serving.certificate, each) for each in known)
            assert NOW + timedelta(seconds=second) < ends_at(replica.serving.certificate)
    assert len(authorities) >= 6


def test_lifetimes_that_are_set_longer_count_at_once(first: Issued) -> None:
    longer = replace(LIFETIMES, serving_s=900)
    renewed = advance(first, names=NAMES, lifetimes=longer, now=NOW, registered=first.bundle)
    assert renewed.next_authority is not None
