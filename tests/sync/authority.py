"""Certificates for tests: an authority, and what it issues."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


class Authority:
    """Issues certificates into a folder; `file` is its own."""

    def __init__(self, folder: Path, name: str = "authority", days: int = 1) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        now = datetime.now(UTC)
        own = self._builder(self._name, now - DAY, now + days * DAY, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self._write(self.file, own)

    def issue(
        self,
        name: str,
        address: str = "127.0.0.1",
        first_day: int = -1,
        last_day: int = 1,
        passphrase: bytes | None = None,
    ) -> tuple[Path, Path]:
        """A certificate for an IP address, valid between two days from today, and its key."""
        certificate, key_file = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        wanted = self._builder(subject, now + first_day * DAY, now + last_day * DAY, key)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        self._write(certificate, wanted.add_extension(names, critical=False))
        sealed = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
        key_file.chmod(0o644)  # mosquitto gives up root before it reads it
        return certificate, key_file

    def _builder(
        self, subject: x509.Name, since: datetime, until: datetime, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(until)
        )

    def _write(self, path: Path, wanted: x509.CertificateBuilder) -> None:
        path.write_bytes(wanted.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
