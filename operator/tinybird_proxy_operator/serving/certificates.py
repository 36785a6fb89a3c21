"""Make an own CA, and the serving certificate that it signs. Time is an argument; the keys are chance."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clocks of others may be so far behind.
_BACKDATED_S: Final = 300
_COMMON_NAME_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str = field(repr=False)


def make_authority(name: str, *, now: datetime, lifetime_s: int) -> Pair:
    """A CA that signs serving certificates and nothing else. No two have the same subject."""
    key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
    subject = _name(f"{name[: _COMMON_NAME_MAX - 9]}-{serial % 16**8:08x}")
    built = (
        _builder(subject, subject, serial, now, now + timedelta(seconds=lifetime_s))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(built, key)


def make_serving(authority: Pair, names: Sequence[str], *, now: datetime, lifetime_s: int) -> Pair:
    """A serving certificate for ``names``; it ends with the CA at the latest."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuer_key = load_pem_private_key(authority.key.encode(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA's key is not one that this program made")
    key = ec.generate_private_key(ec.SECP256R1())
    ends = min(now + timedelta(seconds=lifetime_s), issuer.not_valid_after_utc)
    built = (
        _builder(_name(names[0][:_COMMON_NAME_MAX]), issuer.subject, x509.random_serial_number(), now, ends)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(built, key)


def ends_at(certificate: str) -> datetime:
    """When it is no longer valid. Raises ``ValueError`` if it is no certificate."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def names_of(certificate: str) -> tuple[str, ...]:
    """The DNS names that it is for."""
    extensions = x509.load_pem_x509_certificate(certificate.encode()).extensions
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.get_values_for_type(x509.DNSName))


def is_signed_by(certificate: str, authority: str) -> bool:
    """Whether that CA has signed it."""
    try:
        x509.load_pem_x509_certificate(certificate.encode()).verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority.encode())
        )
    except Exception:  # noqa: BLE001 - InvalidSignature is no ValueError
        return False
    return True


def fits(pair: Pair) -> bool:
    """Whether certificate and key can be read and belong together."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = load_pem_private_key(pair.key.encode(), password=None)
    except (ValueError, TypeError):
        return False
    return isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, serial: int, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(serial)
        .not_valid_before(now - timedelta(seconds=_BACKDATED_S))
        .not_valid_after(ends)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(Encoding.PEM).decode(),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )
