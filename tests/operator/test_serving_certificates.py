"""The certificates themselves: what they are for, how long, and who has signed them."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from tinybird_proxy_operator.serving.certificates import (
    Pair,
    ends_at,
    fits,
    is_signed_by,
    make_authority,
    make_serving,
    names_of,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("metrics.system.svc", "metrics", "metrics.system")


def test_a_serving_certificate_is_for_its_names_and_signed_by_its_ca() -> None:
    authority, other = (make_authority("metrics", now=NOW, lifetime_s=1000) for _ in range(2))
    serving = make_serving(authority, NAMES, now=NOW, lifetime_s=100)
    assert names_of(serving.certificate) == NAMES
    assert ends_at(serving.certificate) == NOW + timedelta(seconds=100)
    assert is_signed_by(serving.certificate, authority.certificate)
    assert not is_signed_by(serving.certificate, other.certificate)
    read = x509.load_pem_x509_certificate(serving.certificate.encode())
    usage = read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert not read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_it_is_good_for_clocks_that_are_behind() -> None:
    authority = make_authority("metrics", now=NOW, lifetime_s=1000)
    read = x509.load_pem_x509_certificate(authority.certificate.encode())
    assert read.not_valid_before_utc == NOW - timedelta(minutes=5)


def test_it_does_not_outlive_its_ca() -> None:
    authority = make_authority("metrics", now=NOW, lifetime_s=50)
    assert ends_at(make_serving(authority, NAMES, now=NOW, lifetime_s=100).certificate) == NOW + timedelta(seconds=50)


def test_no_two_cas_have_the_same_subject_and_the_longest_name_fits() -> None:
    pems = [make_authority("x" * 200, now=NOW, lifetime_s=50).certificate for _ in range(3)]
    subjects = {x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string() for pem in pems}
    assert len(subjects) == 3


def test_a_key_fits_its_certificate_only() -> None:
    one, other = (make_authority("metrics", now=NOW, lifetime_s=50) for _ in range(2))
    assert fits(one)
    assert not fits(Pair(one.certificate, other.key))
    assert not fits(Pair("nothing", one.key))
    assert not fits(Pair(one.certificate, "nothing"))


def test_a_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(make_authority("metrics", now=NOW, lifetime_s=50))


def test_what_is_no_certificate_has_no_end() -> None:
    with pytest.raises(ValueError, match=r".+"):
        ends_at("nothing")
