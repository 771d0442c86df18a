"""Whether a certificate may take the place of the one in use: what can be told without a broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import RequestError
from agent.identity.pair import CERTIFICATE_BYTES_MAX, Pair, common_name, shown
from agent.known_time import KnownTime, day
from agent.words import quoted

if TYPE_CHECKING:
    from cryptography import x509


def read(pem: bytes) -> "list[x509.Certificate]":
    """The device's certificate, then those between it and its authority. Raises RequestError."""
    from cryptography import x509

    if len(pem) > CERTIFICATE_BYTES_MAX:
        raise RequestError(
            f"certificates of {len(pem)} bytes; expected {CERTIFICATE_BYTES_MAX} at most",
            "send the device's certificate, and those between it and its authority",
        )
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise RequestError(
            "no certificate in PEM", "send it as the authority wrote it: BEGIN CERTIFICATE ..."
        ) from error


def checked(
    pem: bytes, pair: Pair, device: str, authorities: "list[x509.Certificate]", known: KnownTime
) -> "x509.Certificate":
    """The certificate, once it was found to be for this device and of a known authority.

    Raises RequestError, which says what is wrong; NotNow where none was asked for.
    """
    found, *between = read(pem)
    with _readable():
        _check(found, between, pair, device, authorities, known)
    return found


def _check(
    found: "x509.Certificate",
    between: "list[x509.Certificate]",
    pair: Pair,
    device: str,
    authorities: "list[x509.Certificate]",
    known: KnownTime,
) -> None:
    """Raises RequestError, NotNow; and what `_readable` makes one of."""
    if common_name(found) != device:
        raise RequestError(
            f"the certificate is for {common_name(found)!r}, and this device is {device}",
            "issue one for the device's own id",
        )
    if not pair.fits(found):
        raise RequestError(
            "the certificate is for another key than the one that this device has made",
            "issue it for the last certificate.request, or `holdfast provision request`",
        )
    _for_clients(found)
    _timely(found, known)
    if not _is_known(found, between, authorities, pair):
        raise RequestError(
            f"the certificate is of {found.issuer.rfc4514_string()}, and no known authority "
            "answers for it",
            "issue it from the authority of link.ca_file, or of the certificate in use",
        )


def authorities(ca_file: str | None) -> "list[x509.Certificate]":
    """Those of `link.ca_file`. Raises RequestError."""
    if ca_file is None:
        return []
    try:
        return read(Path(ca_file).read_bytes())
    except OSError as error:
        raise RequestError(
            f"link.ca_file: {ca_file}: {error.strerror or error}", "check link.ca_file"
        ) from error


@contextmanager
def _readable() -> Iterator[None]:
    """A certificate is read bit by bit, and may be wrong in any; then RequestError says so."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except UnsupportedAlgorithm as error:
        raise RequestError(
            f"the certificate is for a kind of key that nobody knows here: {quoted(str(error))}",
            "issue it for the key of the request (EC, P-256)",
        ) from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise RequestError(
            f"the certificate cannot be read: {quoted(str(error))}", "issue it anew"
        ) from error


def _for_clients(found: "x509.Certificate") -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # it is for anything
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise RequestError(
            "the certificate is not for clients (extended key usage)", "issue it with clientAuth"
        )


def _timely(found: "x509.Certificate", known: KnownTime) -> None:
    said, now_s = shown(found), known.least_s()
    if now_s > said.ends_s:
        raise RequestError(
            f"the certificate has expired on {day(said.ends_s)}; the time is {known.said()}",
            "issue another one",
        )
    if known.sure and now_s < said.begins_s:
        raise RequestError(
            f"the certificate is valid only from {day(said.begins_s)} on; the time is "
            f"{known.said()}",
            "send it again then",
        )


def _is_known(
    found: "x509.Certificate",
    between: "list[x509.Certificate]",
    authorities: "list[x509.Certificate]",
    pair: Pair,
) -> bool:
    """Whether it leads to an authority of the link, or to the one that issued the one in use.

    A broker's authority need not be that of its devices (AWS); then the issuer stays the same.
    """
    if _leads(found, between, authorities):
        return True
    if not pair.path.exists():
        return False
    former = pair.certificate()
    if _leads(former, [], authorities):
        return False  # the link's authority issues the devices' certificates, too
    return former.issuer == found.issuer and _signer(former) == _signer(found) != b""


def _leads(
    found: "x509.Certificate",
    between: "list[x509.Certificate]",
    authorities: "list[x509.Certificate]",
) -> bool:
    """Step by step, each of `between` once at most."""
    left = list(between)
    while not any(_issued(found, one) for one in authorities):
        step = next((one for one in left if _is_authority(one) and _issued(found, one)), None)
        if step is None:
            return False
        left.remove(step)
        found = step
    return True


def _issued(found: "x509.Certificate", by: "x509.Certificate") -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        found.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False  # an authority whose key nobody knows here has issued nothing
    return True


def _is_authority(one: "x509.Certificate") -> bool:
    from cryptography import x509

    try:
        return bool(one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False


def _signer(one: "x509.Certificate") -> bytes:
    """The key that signed it, as it says; b"" where it does not."""
    from cryptography import x509

    try:
        said = one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, ValueError):
        return b""
    return said.key_identifier or b""
