"""A server of its own with a certificate, tokens and a clock that tests bend."""

import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography import x509

from agent.api.entry.exposure import NoTokens
from agent.api.entry.limits import Limits
from agent.api.form.route import Route
from agent.api.routes.inference import Inference
from agent.api.server import Server
from agent.clock import Clock
from agent.config import Api, Tls
from agent.health.conditions import Condition, Conditions
from agent.health.status import Status
from tests.sync.authority import Authority

DEADLINE_S = 90.0
PATIENT = Limits(
    *(4, 2), first_request_s=600, next_request_s=600, body_s=600, handshake_s=600, taking_s=600
)
HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Known(NoTokens):
    """Tokens that come and go."""

    def be(self, there: bool) -> None:
        """There is one, or none any more."""
        self.any = there
        for told in self.changed:
            told()


class Bent(Clock):
    """A clock that stands where it is put, and says of itself what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime.now(UTC)
        self.sure = True

    def wall(self) -> float:
        return self.now.timestamp()

    def synchronised(self) -> bool:
        return self.sure


class Pair:
    """A certificate for 127.0.0.1 and its key, in the files that the settings name."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.certificate, self.key = folder / "api.crt", folder / "api.key"
        self.settings = Tls(certificate_file=str(self.certificate), key_file=str(self.key))

    def write(self, **rules: Any) -> int:
        """A new one; its serial number, by which clients tell it from others."""
        self.authority.issue("api", **{"last_day": 365, **rules})
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


class House:
    """An async context manager: a server with these settings, looked after when a test says so."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = PATIENT,
        more: Iterable[Route] = (),
        inference: Inference | None = None,
        **settings: Any,
    ) -> None:
        self.socket = folder / "holdfast.sock"
        self.clock, self.tokens = Bent(), Known()
        self.conditions = Conditions(self.clock)
        parts = (self.conditions, self.clock, _nothing, {}, folder / "status.json")
        self.server = Server(
            Api(**{"port": 0, "socket": str(self.socket), **settings}),
            Status(dict, *parts),
            _no_bytes,
            limits,
            more,
            inference,
            conditions=self.conditions,
            clock=self.clock,
            tokens=self.tokens,
        )

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.__aexit__()

    async def look(self) -> None:
        """What `run` does each time."""
        await self.server.look()

    @property
    def places_free(self) -> int:
        """Of the TCP port."""
        return self.server._doors[0].seats.free

    def said(self, name: str) -> Condition | None:
        """The condition of this name."""
        return next((one for one in self.conditions.all() if one.name == name), None)

    def tcp(self, host: str = "127.0.0.1") -> socket.socket:
        """A connection, from a thread."""
        return socket.create_connection((host, self.server.port), DEADLINE_S)

    def asked(self, said: bytes = HEALTH, host: str = "127.0.0.1") -> bytes:
        """All that is answered without TLS, from a thread."""
        with self.tcp(host) as sock:
            sock.sendall(said)
            return whole(sock)

    def shaken(self, said: bytes = HEALTH, **rules: Any) -> tuple[bytes, int]:
        """All that is answered over TLS, and the serial number of who did; from a thread."""
        context = trusting()
        for rule, value in rules.items():
            setattr(context, rule, value)
        with context.wrap_socket(self.tcp()) as sock:
            sock.sendall(said)
            der = sock.getpeercert(binary_form=True)
            assert der is not None
            return whole(sock), x509.load_der_x509_certificate(der).serial_number


def trusting() -> ssl.SSLContext:
    """A client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def whole(sock: socket.socket) -> bytes:
    """Until the end of the connection."""
    taken = b""
    while piece := sock.recv(65_536):
        taken += piece
    return taken


async def _nothing() -> dict[str, Any]:
    return {}


async def _no_bytes() -> bytes:
    return b""
