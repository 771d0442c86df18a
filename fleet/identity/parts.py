"""The parts that certificates and lists of an authority are made of."""

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

BACK = timedelta(days=1)  # for a broker whose clock is behind
Public = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def begun(
    subject: x509.Name,
    issuer: x509.Name,
    public: Public,
    ends: datetime,
) -> x509.CertificateBuilder:
    """What all certificates have."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - BACK)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists, all others handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        **dict.fromkeys(
            [
                *("content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "encipher_only", "decipher_only"),
            ],
            False,
        ),
    )


def listed(
    authority: x509.Certificate, revoked: Mapping[int, datetime], now: datetime
) -> x509.CertificateRevocationListBuilder:
    """The list of these serials, by since when each is revoked; it never expires by itself."""
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now)
        .next_update(authority.not_valid_after_utc)
    )
    for serial, since in revoked.items():
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
        made = made.add_revoked_certificate(one.build())
    return made


def host(name: str) -> x509.DNSName | x509.IPAddress:
    """A broker's name, or its address."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def part(one: x509.Certificate, kind: x509.ObjectIdentifier) -> str:
    """A part of whom it is for; '' where it has none."""
    found = one.subject.get_attributes_for_oid(kind)
    return str(found[0].value) if found else ""
