"""The certificate of the TCP port, taken anew whenever its files change.

A pair that cannot be used changes nothing: the former one serves on. One that has expired serves
too, for whether it has is a question of the clock, and a clock that is wrong must not lock a
technician out. Both are conditions.
"""

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from agent.clock import Clock
from agent.config import Tls as Settings
from agent.errors import ConfigError
from agent.health.conditions import Conditions
from agent.health.names import Name

CONDITION: tuple[Name, str] = ("api_certificate", "api.tls")
ENDING_S = 30 * 86_400.0
Stamp = tuple[int, ...]  # of the two files; when it changes, they are read again


class Pair(NamedTuple):
    """A certificate and its key, ready to serve; valid between two times of day."""

    context: ssl.SSLContext
    begins: datetime
    ends: datetime


class Certificate:
    """What serves now, if anything does."""

    def __init__(self, settings: Settings | None, conditions: Conditions, clock: Clock) -> None:
        self._settings = settings
        self._conditions = conditions
        self._clock = clock
        self._pair: Pair | None = None
        self._stamp: Stamp | None = None  # of the files that the pair is from

    @property
    def context(self) -> ssl.SSLContext | None:
        """For a new connection; None: there is no TLS."""
        return self._pair.context if self._pair else None

    async def look(self) -> None:
        """Take the files if they have changed, and say what is wrong with them."""
        if self._settings is None:
            return
        try:
            stamp = await asyncio.to_thread(_stamp, self._settings)
            if stamp != self._stamp:
                self._pair = await asyncio.to_thread(load, self._settings)
                self._stamp = stamp
        except ConfigError as error:
            serves = "the former one serves on" if self._pair else "the port serves without TLS"
            self._conditions.hold(*CONDITION, "warning", f"{error}; {serves}", error.hint)
        else:
            self._judge()

    def _judge(self) -> None:
        """Whether it is valid now, and for how much longer."""
        assert self._pair is not None
        said = None
        if self._clock.synchronised():
            now = datetime.fromtimestamp(self._clock.wall(), UTC)
            if now < self._pair.begins:
                said = f"the certificate is valid only from {self._pair.begins:%Y-%m-%d} on"
            elif now > self._pair.ends:
                said = f"the certificate expired on {self._pair.ends:%Y-%m-%d}; it serves on"
            elif (self._pair.ends - now).total_seconds() < ENDING_S:
                said = f"the certificate expires on {self._pair.ends:%Y-%m-%d}"
        if said:
            remedy = "put a new one and its key into the files of api.tls; no restart is needed"
            self._conditions.hold(*CONDITION, "warning", said, remedy)
        else:
            self._conditions.clear(*CONDITION)


def load(settings: Settings) -> Pair:
    """The pair in the files, once all of it was found good. Raises ConfigError."""
    from cryptography import x509  # few serve with TLS, and it takes memory

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    files = settings.certificate_file, settings.key_file
    try:
        context.load_cert_chain(*files, password=_locked)
        first = x509.load_pem_x509_certificate(Path(settings.certificate_file).read_bytes())
        return Pair(context, first.not_valid_before_utc, first.not_valid_after_utc)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise _unusable(settings, error) from error


def _locked() -> str:
    raise ConfigError(
        "api.tls.key_file: it is locked with a password",
        "save the key without one, in a file that only this user may read",
    )


def _stamp(settings: Settings) -> Stamp:
    """What changes when a file does. Raises ConfigError."""
    try:
        found = [Path(one).stat() for one in (settings.certificate_file, settings.key_file)]
    except OSError as error:
        raise _unusable(settings, error) from error
    return tuple(
        each
        for one in found
        for each in (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
    )


def _unusable(settings: Settings, error: Exception) -> ConfigError:
    files = f"{settings.certificate_file} and {settings.key_file}"
    if isinstance(error, ssl.SSLError):
        why = (error.reason or str(error)).lower().replace("_", " ")
    elif isinstance(error, OSError):
        files, why = str(error.filename or files), error.strerror or str(error)
    else:
        why = str(error).partition("\n")[0]
    return ConfigError(
        f"api.tls: {files}: {why}",
        "put a certificate (PEM, with those between it and its root) and the key that belongs to "
        "it into these files, readable for this user; no restart is needed",
    )
