"""The device's private key and its certificate, in one file, so that one rename replaces both.

Limits  : CERTIFICATE_BYTES_MAX of a certificate with those between it and its authority.
Format  : PEM, the key first (PKCS#8), mode 0600. Beside it `.request`, the key of a certificate
          that was asked for, and `.former`, the pair before the last switch, while on trial.
Recovery: each file is replaced as a whole and fsynced. `.former` is there before the new pair is,
          and goes after the trial; so whenever the agent dies, the file itself is a pair, and what
          has to be done is seen from the files. A `.former` that equals the pair is left from a
          switch that never was, or from one that was taken back, and goes.

The key is made here and is never shown to anybody; what leaves is a request (PKCS#10).
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent import whole_file
from agent.errors import NotNow, NotThere

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CERTIFICATE_BYTES_MAX = 32 << 10


class Shown(NamedTuple):
    """A certificate, as people and programs are told of it; UTC, in seconds since 1970."""

    device: str
    serial: str
    issuer: str
    begins_s: float
    ends_s: float
    sha256: str


class Pair:
    """The files of one pair. All of it blocks, and raises OSError where the disk fails."""

    def __init__(self, path: Path) -> None:
        """`path` is what `link.cert_file` names."""
        self.path = path
        self._request = path.with_name(f"{path.name}.request")
        self._former = path.with_name(f"{path.name}.former")

    def shown(self) -> Shown:
        """What the certificate in use says. Raises NotThere."""
        return shown(self.certificate())

    def certificate(self) -> "x509.Certificate":
        """The one in use. Raises NotThere."""
        from cryptography import x509  # 6 MiB, for those alone who need it

        try:
            return x509.load_pem_x509_certificate(self.path.read_bytes())
        except FileNotFoundError as error:
            raise NotThere(
                f"{self.path}: this device has no certificate yet",
                "enrol it (docs/identity.md)",
            ) from error
        except ValueError as error:
            raise NotThere(
                f"{self.path}: no certificate in PEM", "write the device's one there"
            ) from error

    def request(self, device: str) -> str:
        """A certificate's request, in PEM, for a key that is made now.

        Asked again before the certificate came, it is for the same key, so that an answer that was
        lost, or one that comes late, fits all the same.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import NameOID

        key = self._asked()
        if key is None or self._serves(key):
            key = ec.generate_private_key(ec.SECP256R1())
            self._put(self._request, _pem(key))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
        wanted = x509.CertificateSigningRequestBuilder().subject_name(name)
        return wanted.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def fits(self, certificate: "x509.Certificate") -> bool:
        """Whether it is for the key that was made for the last request. Raises NotNow."""
        key = self._asked()
        if key is None:
            raise NotNow(
                "no certificate was asked for: there is no key that one could be for",
                "ask with certificate.request, or `holdfast provision request`",
            )
        return bool(key.public_key() == certificate.public_key())

    def is_of(self, certificate: "x509.Certificate") -> bool:
        """Whether this certificate is the one in use."""
        return self.path.exists() and self.certificate() == certificate

    @property
    def on_trial(self) -> bool:
        """Whether the pair in use was switched to, and may still be taken back."""
        if not self._former.exists():
            return False
        if not self.path.exists() or self._former.read_bytes() != self.path.read_bytes():
            return True
        whole_file.remove(self._former)
        return False

    def switch(self, certificates: bytes, *, on_trial: bool) -> None:
        """Use the new key with its certificate (PEM) from now on."""
        key = self._asked()
        assert key is not None  # `fits` was asked
        if on_trial and self.path.exists():
            self._put(self._former, self.path.read_bytes())
        self._put(self.path, _pem(key) + certificates)

    def keep(self) -> None:
        """The new pair has shown that it serves."""
        whole_file.remove(self._request)
        whole_file.remove(self._former)  # the last: as long as it is there, the trial goes on

    def take_back(self) -> None:
        """Use the former pair again; the key that was made stays, for another certificate."""
        self._put(self.path, self._former.read_bytes())
        whole_file.remove(self._former)

    def _put(self, path: Path, content: bytes) -> None:
        whole_file.replace(path, content, whole_file.private(path))

    def _serves(self, key: "EllipticCurvePrivateKey") -> bool:
        """Whether the pair in use is of that key: an end of the agent left the request behind."""
        try:
            return bool(self.certificate().public_key() == key.public_key())
        except NotThere:
            return False

    def _asked(self) -> "EllipticCurvePrivateKey | None":
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(self._request.read_bytes(), None)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:  # TypeError: it is encrypted
            raise NotNow(f"{self._request}: no private key in PEM", "remove it") from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise NotNow(f"{self._request}: not a key that was made here", "remove it")
        return key


def shown(certificate: "x509.Certificate") -> Shown:
    """What a certificate says."""
    from cryptography.hazmat.primitives import hashes

    return Shown(
        common_name(certificate),
        f"{certificate.serial_number:x}",
        certificate.issuer.rfc4514_string(),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def common_name(certificate: "x509.Certificate") -> str:
    """The one name of its subject; '' where it has none, or several."""
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _pem(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
