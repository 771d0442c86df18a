"""A small certificate authority: whoever a broker lets in shows a certificate from here.

Limits  : some tens of thousands of certificates; `ls` reads them all.
Format  : a folder with `authority.key` (PKCS#8, mode 0600), `authority.crt`, `revoked.crl` (what
          the broker reads), and `certificates/SERIAL.crt`, one for each that was issued; all PEM.
Recovery: each file is replaced as a whole and fsynced. A certificate is in the folder before
          anybody sees it; what is revoked is what the list says. Copy the folder: without its key
          nothing can be issued or revoked any more, and all devices have to be enrolled anew.

A certificate's common name is the device's id, which the broker takes for its user name and its
client id; its organisational unit is its role. The list of what is revoked is valid as long as the
authority is: one that expires would shut out every device.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent import whole_file
from agent.errors import ConfigError, NotThere, RequestError
from fleet.identity.parts import Public, begun, host, listed, part, usage

Role = Literal["device", "ingest", "controller", "broker"]
ROLES: tuple[Role, ...] = get_args(Role)
NAMED = ("ingest", "controller")  # roles whose names no device may have
AUTHORITY_DAYS, CERTIFICATE_DAYS = 7300, 730
RSA_BITS_MIN = 2048
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Issued(NamedTuple):
    """One certificate; UTC. `revoked` is since when it is refused."""

    name: str
    role: str
    serial: str
    begins: datetime
    ends: datetime
    revoked: datetime | None

    def serves(self, now: datetime) -> bool:
        """Whether a broker takes it."""
        return self.revoked is None and now <= self.ends


class Authority:
    """The folder; its clock is that of the office, which is believed."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where it is not there or cannot be read."""
        self.certificate_file = folder / "authority.crt"
        self.revoked_file = folder / "revoked.crl"
        self._issued = folder / "certificates"
        try:
            key_file = folder / "authority.key"
            key = load_pem_private_key(_closed(key_file), None)
            self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
            self._list = x509.load_pem_x509_crl(self.revoked_file.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"{error.filename or folder}: {error.strerror or error}",
                "name the folder with --folder, or make it: holdfast-fleet identity init",
            ) from error
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{folder}: not the files of an authority: {error}", "restore them from a copy"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{key_file}: not a key that was made here", "restore it")
        self._key = key

    @classmethod
    def made(cls, folder: Path, name: str, days: int = AUTHORITY_DAYS) -> Self:
        """A new one. Raises ConfigError where there is one already."""
        if (folder / "authority.key").exists():
            raise ConfigError(
                f"{folder}: there is an authority already",
                "use it; to begin anew, move the folder away and enrol every device again",
            )
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        wanted = begun(subject, subject, key.public_key(), now + timedelta(days=days))
        wanted = wanted.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        wanted = wanted.add_extension(usage(signs=True), critical=True)
        certificate = wanted.sign(key, hashes.SHA256())
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            whole_file.replace(folder / "authority.crt", certificate.public_bytes(Encoding.PEM))
            empty = listed(certificate, {}, now).sign(key, hashes.SHA256())
            whole_file.replace(folder / "revoked.crl", empty.public_bytes(Encoding.PEM))
            key_file = folder / "authority.key"  # the last
            whole_file.replace(key_file, key_pem(key), whole_file.private(key_file))
        except OSError as error:
            raise ConfigError(
                f"{error.filename or folder}: {error.strerror or error}", "name another --folder"
            ) from error
        return cls(folder)

    @property
    def pem(self) -> bytes:
        """Its own certificate: `link.ca_file` of the devices, `cafile` of the broker."""
        return self._certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        name: str,
        role: Role,
        public: "x509.CertificateSigningRequest | ec.EllipticCurvePrivateKey",
        *,
        hosts: Sequence[str] = (),
        days: int = CERTIFICATE_DAYS,
        again: bool = False,
    ) -> bytes:
        """A certificate, in PEM, for whoever holds the key that the request is signed with.

        `again`: beside the one that this name has, which serves on. Raises RequestError.
        """
        _fitting(name, role, hosts)
        now = datetime.now(UTC)
        known = [one for one in self.all() if one.name == name and one.serves(now)]
        if known and not again:
            raise RequestError(
                f"{name} has a certificate that serves until {known[0].ends:%Y-%m-%d}",
                "two devices of one name shut each other out; `identity renew` is for the same one",
            )
        if again and not any(one.name == name and one.role == role for one in self.all()):
            raise RequestError(f"{name} never had a certificate as {role}", "identity issue")
        ends = min(now + timedelta(days=days), self._certificate.not_valid_after_utc)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        wanted = begun(subject, self._certificate.subject, _public(public, name), ends)
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        purpose = _SERVER if role == "broker" else _CLIENT
        wanted = (
            wanted.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(by, critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([host(one) for one in hosts])
            wanted = wanted.add_extension(names, critical=False)
        made = wanted.sign(self._key, hashes.SHA256())
        pem = made.public_bytes(Encoding.PEM)
        whole_file.replace(self._issued / f"{made.serial_number:x}.crt", pem)
        return pem

    def revoke(self, which: str) -> list[Issued]:
        """Refuse a certificate by its serial, or all that a name has; those that are new on the
        list. Raises NotThere."""
        now = datetime.now(UTC)
        found = [one for one in self.all() if which in (one.name, one.serial)]
        if not found:
            raise NotThere(f"{which}: no certificate of this name or serial", "identity ls")
        fresh = [one for one in found if one.revoked is None]
        since = {one.serial_number: one.revocation_date_utc for one in self._list}
        since |= {int(one.serial, 16): now for one in fresh}
        made = listed(self._certificate, since, now).sign(self._key, hashes.SHA256())
        whole_file.replace(self.revoked_file, made.public_bytes(Encoding.PEM))
        self._list = made
        return fresh

    def all(self) -> list[Issued]:
        """Each that was issued, by name, the newest of a name last."""
        revoked = {one.serial_number: one.revocation_date_utc for one in self._list}
        return sorted(self._read(revoked), key=lambda one: (one.name, one.begins, one.serial))

    def _read(self, revoked: dict[int, datetime]) -> Iterator[Issued]:
        for path in self._issued.glob("*.crt"):
            one = x509.load_pem_x509_certificate(path.read_bytes())
            yield Issued(
                part(one, NameOID.COMMON_NAME),
                part(one, NameOID.ORGANIZATIONAL_UNIT_NAME),
                f"{one.serial_number:x}",
                one.not_valid_before_utc,
                one.not_valid_after_utc,
                revoked.get(one.serial_number),
            )


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for somebody who has none, as the broker and an ingest at this very place."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it lies in a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request(pem: bytes) -> x509.CertificateSigningRequest:
    """A device's request. Raises RequestError."""
    try:
        return x509.load_pem_x509_csr(pem)
    except ValueError as error:
        raise RequestError(
            "no certificate request in PEM", "`holdfast provision request` writes one"
        ) from error


def _closed(path: Path) -> bytes:
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path}: others may read the authority's key",
            f"chmod 600 {path}; if somebody may have read it, begin anew with another authority",
        )
    return path.read_bytes()


def _fitting(name: str, role: Role, hosts: Sequence[str]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):  # as forms.DeviceId, to its very end
        raise RequestError(
            f"{name!r} is no name", "1 to 64 letters, digits, -, _ and .; a device's is device_id"
        )
    whose = next((one for one in NAMED if name == one or name.startswith(f"{one}-")), "device")
    if role != "broker" and whose != role:
        right = f"{role} or {role}-..." if role in NAMED else "not as a role of the cloud"
        raise RequestError(f"{name!r} cannot be the name of a {role}", f"name it {right}")
    if (role == "broker") != bool(hosts):
        raise RequestError(
            "a broker's certificate names its hosts, others name none", "--host NAME, for a broker"
        )


def _public(of: "x509.CertificateSigningRequest | ec.EllipticCurvePrivateKey", name: str) -> Public:
    """The key alone: what else a request asks for is not its to ask."""
    if isinstance(of, ec.EllipticCurvePrivateKey):
        return of.public_key()
    said = [str(one.value) for one in of.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not of.is_signature_valid or (said and said != [name]):
        raise RequestError(
            f"the request is not one of {name} ({', '.join(said) or 'its signature is wrong'})",
            "name the device whose request it is",
        )
    key = of.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN:
        return key
    if isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        return key
    raise RequestError(
        "the request's key is weak, or of a kind that brokers do not take",
        "use EC (P-256), Ed25519, or RSA with 2048 bits or more",
    )
