"""Where the TCP port listens: beyond this machine only with a certificate and a token.

Only policy: what follows from the settings and from what there is now. `api.without_tls` says that
no certificate is needed; without a token there is nobody out there who could be let in.
"""

import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import NamedTuple, Protocol

from agent.config import Api as Settings
from agent.errors import ConfigError

ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # each with the loopback that is part of it
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Tokens(Protocol):
    """Who knows the tokens."""

    @property
    def any(self) -> bool:
        """Whether there is one."""

    @property
    def changed(self) -> list[Callable[[], None]]:
        """Who is told when one was made or revoked."""


class NoTokens:
    """Where nobody can have one."""

    any = False

    def __init__(self) -> None:
        self.changed: list[Callable[[], None]] = []


class Exposure(NamedTuple):
    """The addresses to listen on; what is lacking for more, with what to do about each."""

    addresses: frozenset[str]
    lacking: tuple[tuple[str, str], ...] = ()


def checked(settings: Settings) -> Settings:
    """What was set. Raises ConfigError for what cannot be meant."""
    try:
        ip_address(settings.host)
    except ValueError as error:
        raise ConfigError(
            f"api.host: {error}", "name an address of this machine, or 0.0.0.0 or :: for all"
        ) from error
    if settings.tls and settings.without_tls:
        raise ConfigError(
            "api.without_tls: api.tls is set too", "leave one of them out, as it is meant"
        )
    return settings


def loopback(host: str) -> str:
    """The address that programs on this machine reach, of the same kind."""
    if ip_address(host).is_loopback:
        return host
    return "::1" if ip_address(host).version == 6 else "127.0.0.1"


def exposure(settings: Settings, *, certificate: bool, token: bool) -> Exposure:
    """Where to listen, with what is in use now."""
    host, near = settings.host, loopback(settings.host)
    if host == near:
        return Exposure(frozenset({near}))
    lacking = []
    if not certificate and settings.tls:
        lacking.append(("its certificate cannot be used", "see the condition api_certificate"))
    elif not certificate and not settings.without_tls:
        lacking.append(
            ("it has no certificate", "set api.tls to one and its key (or api.without_tls: true)")
        )
    if not token:
        lacking.append(("there is no token", "make one: holdfast tokens create"))
    if lacking:
        return Exposure(frozenset({near}), tuple(lacking))
    # Programs on this machine go on using the address that they know.
    return Exposure(frozenset({host} if host in ALL else {host, near}))


def names(addresses: Iterable[str]) -> frozenset[str]:
    """What a client out there may call this machine, when it listens there.

    None where it listens on the loopback alone. No one but the machine itself can have these, so
    that a page under a name of somebody else's stays refused (DNS rebinding).
    """
    outside = {one for one in addresses if not ip_address(one).is_loopback}
    if not outside:
        return frozenset()
    for one in outside & ALL.keys():
        outside |= _own(FAMILIES[ip_address(one).version])
    full = socket.gethostname().lower()
    short = full.partition(".")[0]
    return frozenset(outside - ALL.keys() | {full, short, f"{short}.local"})


def _own(family: int) -> set[str]:
    """The addresses of this machine now: they come and go with its network."""
    import psutil  # few listen on all addresses, and it takes memory

    found = (one for every in psutil.net_if_addrs().values() for one in every)
    return {one.address.partition("%")[0] for one in found if one.family == family}
