"""TLS: the context that the settings ask for, and what went wrong, in words that name key and file.

The files are read anew for each connection, so that a renewed certificate or token is used without
a restart.
"""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import Link as Settings
from agent.errors import LinkError
from agent.known_time import KnownTime, day
from agent.sync.mqtt import dates

if TYPE_CHECKING:
    from cryptography import x509

_ALERTS = {  # of what the broker found wrong with the device's certificate (RFC 8446, 6.2)
    "CERTIFICATE_EXPIRED": "has expired by the broker's clock, or is not valid yet",
    "CERTIFICATE_REVOKED": "was revoked",
}
_RENEW = "have the device's certificate renewed: docs/identity.md"
_NOT_YET, _EXPIRED, _NO_ISSUER, _WRONG_HOST, _WRONG_ADDRESS = 9, 10, (18, 19, 20, 21), 62, 64


def context(settings: Settings, *, dated: bool) -> ssl.SSLContext:
    """Trust, the device's certificate and ALPN; raises LinkError that names the key at fault.

    `dated`: whether OpenSSL judges by this machine's clock what has expired.
    """
    if settings.ca_file is not None:
        _readable("ca_file", settings.ca_file)
    try:
        found = ssl.create_default_context(cafile=settings.ca_file)
    except ssl.SSLError as error:
        raise LinkError(
            f"link.ca_file: {settings.ca_file}: no certificates in PEM",
            "write the certificate of the broker's authority there, as PEM",
        ) from error
    if not dated:
        dates.leave_out(found)
    if settings.alpn is not None:
        found.set_alpn_protocols([settings.alpn])
    if settings.cert_file is not None:
        _present(found, settings.cert_file, settings.key_file)
    elif settings.key_file is not None:
        raise LinkError(
            "link.key_file is set, and link.cert_file is not", "set both, or neither of them"
        )
    return found


def _present(found: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    """Have the context show the device's certificate."""
    _readable("cert_file", cert_file)
    if key_file is not None:
        _readable("key_file", key_file)
    where = f"link.key_file: {key_file}" if key_file else f"link.cert_file: {cert_file}"
    encrypted = False

    def ask() -> str:
        nonlocal encrypted
        encrypted = True
        return ""

    try:
        found.load_cert_chain(cert_file, key_file, ask)
    except (ssl.SSLError, ValueError) as error:
        if encrypted:
            raise LinkError(
                f"{where}: the key is encrypted, and nobody is here to type its passphrase",
                "write it without one: openssl pkey -in KEY -out NEW",
            ) from error
        _certificate(cert_file)
        if "MISMATCH" in str(error):
            raise LinkError(
                f"{where}: the key does not belong to the certificate in {cert_file}",
                "use the key that the certificate was requested with",
            ) from error
        raise LinkError(
            f"{where}: no private key in PEM",
            "" if key_file else "set link.key_file, or put the key into link.cert_file",
        ) from error


def _readable(key: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise LinkError(
            f"link.{key}: {path}: {error.strerror or error}", f"check link.{key} in the config"
        ) from error


def _certificate(path: str) -> "x509.Certificate":
    from cryptography import x509  # 6 MiB, for those alone who need it

    try:
        return x509.load_pem_x509_certificate(Path(path).read_bytes())
    except ValueError as error:
        raise LinkError(
            f"link.cert_file: {path}: no certificate in PEM", "write the device's one there"
        ) from error


def explained(error: OSError, settings: Settings, host: str, known: KnownTime) -> LinkError | None:
    """What a failed handshake means; None: TLS has nothing to do with it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(error, settings, host, known)
    if not isinstance(error, ssl.SSLError):
        return None
    if "ALERT" in str(error):
        reason = f"the broker ended the handshake: {error}"
        if said := next((one for word, one in _ALERTS.items() if word in str(error)), None):
            return LinkError(f"{reason}; link.cert_file: {settings.cert_file} {said}", _RENEW)
        return suspected(reason, settings, known)
    return LinkError(str(error), "check that link.broker_url names a port that speaks TLS")


def suspected(reason: str, settings: Settings, known: KnownTime) -> LinkError:
    """The broker hung up before it answered: probably for the device's certificate."""
    said, hint = (
        f"link.cert_file: {settings.cert_file} may not be what it accepts",
        "check link.cert_file, link.key_file and link.alpn against what the broker asks for",
    )
    if settings.cert_file is None:
        said = "it may want a certificate of the device, and link.cert_file is not set"
    else:
        said, hint = _untimely(settings.cert_file, known) or (said, hint)
    return LinkError(f"{reason}; {said}", hint)


def _distrust(
    error: ssl.SSLCertVerificationError, settings: Settings, host: str, known: KnownTime
) -> LinkError:
    """Why we do not trust the broker's certificate."""
    clock_says = f"by this machine's clock, {_date(known)}"  # else nobody judged it
    code = error.verify_code
    if code == _EXPIRED:
        said, hint = f"has expired {clock_says}", "renew it, or set the clock if it is wrong"
    elif code == _NOT_YET:
        said, hint = f"is not valid yet {clock_says}", "the clock is probably wrong: set it"
    elif code in (_WRONG_HOST, _WRONG_ADDRESS):
        said, hint = f"is not for {host}", "name the broker in link.broker_url as its certificate"
    elif code in _NO_ISSUER:
        trust = settings.ca_file or "the system's authorities (no link.ca_file is set)"
        said = f"is of no authority in {trust}"
        hint = "set link.ca_file to the certificate of the broker's authority"
    else:
        said, hint = "is not trusted", "check link.ca_file and the broker's certificate"
    return LinkError(f"the broker's certificate {said}: {error}", hint)


def _untimely(path: str, known: KnownTime) -> tuple[str, str] | None:
    """Whether the device's own certificate is out of its time, and what to do."""
    found, now_s = _certificate(path), known.least_s()
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if now_s < begins.timestamp() and known.sure:
        return (
            f"link.cert_file: {path} is valid from {begins:%Y-%m-%d}, and this machine's clock "
            f"says {_date(known)}",
            "the clock is probably wrong: set it",
        )
    if now_s > ends.timestamp():
        return (
            f"link.cert_file: {path} has expired on {ends:%Y-%m-%d}",
            "have the device's certificate renewed, or set the clock if it is wrong",
        )
    return None


def _date(known: KnownTime) -> str:
    return day(known.least_s())
