"""Who asks, and what he may do.

By `Authorization: Bearer` he is the token's, whichever way he came: by the unix socket too, for who
shows a token wants no more than that allows. One that is not known lets nobody in, and nothing else
is then looked at. Without it, the cookie of a session counts in the same way. Else whoever comes by
the unix socket is let do everything: the mode of its file says who that is; and over TCP a program
on this machine may do what the settings allow it.

A cookie that stands for no session takes nothing away, for a browser sends it unasked, and without
it he would be let in all the same. Where that is not enough, he is told that his session has ended.
"""

import asyncio
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import NamedTuple, Protocol

from agent.api.entry.sessions import COOKIE, Session, Sessions
from agent.api.entry.tokens import Token, Tokens
from agent.forms import SCOPES, Scope

FORWARDED, FORWARDED_X = ("forwarded", "x-real-ip", "via"), "x-forwarded-"
SCHEME = "bearer "


class Headers(Protocol):
    """Those of a request."""

    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def getall(self, key: str, default: list[str], /) -> list[str]:
        """All of one name."""


class Caller(NamedTuple):
    """Somebody, and the scopes he holds; `token` is the id of the one that lets him in, if any.

    `free`: no rate holds for him. `ended`: he shows the cookie of a session that there is not.
    """

    name: str
    scopes: frozenset[Scope]
    token: str = ""
    session: Session | None = None
    free: bool = False
    ended: bool = False

    @property
    def key(self) -> str:
        """What tells him from others: his token, however he comes by it, or else how he came."""
        return self.token or self.name

    @property
    def described(self) -> str:
        """Who he is, for the log; no name that somebody gave a token reads as another caller."""
        if not self.token:
            return self.name
        return f"{'session of ' if self.session else ''}token {self.name!r}"

    def may(self, scopes: tuple[Scope, ...]) -> bool:
        """Whether he holds one of these, or none is asked for."""
        return not scopes or not self.scopes.isdisjoint(scopes)


OPERATOR = Caller("unix socket", frozenset(SCOPES), free=True)
NOBODY = Caller("nobody", frozenset())
IMPOSTOR = Caller("unknown token", frozenset())  # he showed one that is not known


class Access:
    """Tells callers from each other."""

    def __init__(
        self,
        loopback: Iterable[Scope],
        tokens: Tokens | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        """`loopback` are the scopes of programs on this machine."""
        self.tokens = tokens
        self.sessions = sessions
        self._loopback = Caller("loopback", frozenset(loopback), free=True)

    def caller(self, transport: asyncio.BaseTransport | None, headers: Headers) -> Caller:
        """Who sent a request, by its header and its connection."""
        if shown := headers.getall("Authorization", []):
            return self.bearer(shown)
        # A proxy on this machine speaks for somebody who need not be on it.
        came = NOBODY if forwarded(headers) else self.arrival(transport)
        if "Cookie" in headers and (cookies := _cookies(headers)):
            found = self.sessions.of(cookies) if self.sessions else None
            return _holder(found[1], found[0]) if found else came._replace(ended=True)
        return came

    def bearer(self, shown: list[str]) -> Caller:
        """Who is known by these headers `Authorization`; two of them are nobody's."""
        scheme, text = shown[0][: len(SCHEME)], shown[0][len(SCHEME) :]
        if len(shown) != 1 or scheme.lower() != SCHEME or self.tokens is None:
            return IMPOSTOR
        token = self.tokens.shown(text.strip(" "))
        return _holder(token) if token else IMPOSTOR

    def arrival(self, transport: asyncio.BaseTransport | None) -> Caller:
        """Who is known by the connection alone."""
        if transport is None:
            return NOBODY
        sock, peer = map(transport.get_extra_info, ("socket", "peername"))
        if sock is not None and sock.family == socket.AF_UNIX:
            return OPERATOR
        return self._loopback if peer and ip_address(peer[0]).is_loopback else NOBODY

    def holds(self, caller: Caller) -> bool:
        """Whether he may still do what he may: his token was not revoked, his session not ended."""
        if not caller.token:
            return True
        if caller.session and not (self.sessions and self.sessions.alive(caller.session)):
            return False
        return self.tokens is not None and self.tokens.get(caller.token) is not None

    def left_s(self, caller: Caller) -> float | None:
        """How long he is known at most; None: until somebody revokes that."""
        return self.sessions.left_s(caller.session) if self.sessions and caller.session else None


def forwarded(headers: Headers) -> bool:
    """Whether somebody says that he hands a request on."""
    names = map(str.lower, headers)
    return any(name in FORWARDED or name.startswith(FORWARDED_X) for name in names)


def address_of(transport: asyncio.BaseTransport | None) -> str:
    """Where a connection comes from, as one word."""
    if transport is None:
        return "who has left"
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else "unix socket"


def _holder(token: Token, session: Session | None = None) -> Caller:
    return Caller(token.name, frozenset(token.scopes), token.id, session)


def _cookies(headers: Headers) -> list[str]:
    """What stands in the cookies of our name."""
    pairs = (
        part.partition("=") for line in headers.getall("Cookie", []) for part in line.split(";")
    )
    return [value.strip().strip('"') for name, _, value in pairs if name.strip() == COOKIE]
