"""What the doors listen on: the TCP port on one or more addresses, and the unix socket."""

import asyncio
import errno
import grp
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.api.entry.doors import Door
from agent.errors import ConfigError

SOCKET_MODE = 0o660
BACKLOG_MAX = 1024  # who comes in a crowd should not have to come again a second later
HINTS: Mapping[int | None, str] = {  # by what the system says of the port
    errno.EADDRINUSE: "stop what holds the port, or set another api.port",
    errno.EACCES: "set a higher api.port: this user may not listen on one so low",
    errno.EADDRNOTAVAIL: "set another api.host: this machine has no such address",
    errno.EAFNOSUPPORT: "set another api.host: this machine has no such address",
}


class Port:
    """The TCP port; the addresses may change while it serves, and open connections go on."""

    def __init__(self, door: Door, number: int) -> None:
        """With number 0, any is taken, and kept from then on."""
        self._door = door
        self.number = number
        self._servers: dict[str, asyncio.Server] = {}

    @property
    def addresses(self) -> frozenset[str]:
        """Where it listens now."""
        return frozenset(self._servers)

    async def listen(self, addresses: Iterable[str]) -> None:
        """On these addresses and no other. Raises ConfigError for one that cannot be had."""
        wanted = set(addresses)
        for gone in self._servers.keys() - wanted:  # all addresses at once leave no room for one
            self._servers.pop(gone).close()
        for new in sorted(wanted - self._servers.keys()):
            await self._open(new)

    def close(self) -> None:
        """Take no new connection."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    async def _open(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._door, address, self.number, backlog=BACKLOG_MAX)
        except OSError as error:
            raise ConfigError(
                f"api.port: {address}:{self.number}: {_said(error)}",
                HINTS.get(error.errno, "set another api.port"),
            ) from error
        self._servers[address] = server
        self.number = int(server.sockets[0].getsockname()[1])


async def on_socket(door: Door, path: Path, group: str | None) -> asyncio.Server:
    """Serve on a unix socket, for its owner and its group (none: as the process has it).

    One that a killed agent left is taken over, nothing else is. Raises ConfigError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket() and not _answers(path):
            path.unlink()
        if path.exists():
            raise ConfigError(
                f"api.socket: {path}: there is something else, or another agent serves on it",
                "set another api.socket",
            )
        made = socket.socket(socket.AF_UNIX)
        try:
            made.bind(str(path))
            _give(path, group)  # before anybody can connect: it does not listen yet
            return await asyncio.get_running_loop().create_unix_server(door, sock=made)
        except BaseException:  # a cancellation too: nothing of it stays in the folder
            made.close()
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"api.socket: {path}: {error.strerror or error}",
            "name a folder this user may write to" if error.errno else "name a shorter path",
        ) from error


def _give(path: Path, group: str | None) -> None:
    """To a group. Raises ConfigError where it is none, or not for this user to give to."""
    if group is not None:
        try:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        except KeyError as error:
            raise ConfigError(
                f"api.group: there is no group {group!r} on this machine",
                f"make it (groupadd --system {group}), or name another",
            ) from error
        except PermissionError as error:
            raise ConfigError(
                f"api.group: this user may not give the socket to {group!r}",
                "have it be a member (usermod --append --groups), or name a group it is in",
            ) from error
    path.chmod(SOCKET_MODE)


def _answers(path: Path) -> bool:
    """Whether somebody may serve on a unix socket: only a refusal says that nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def _said(error: OSError) -> str:
    """What the system says; the loop's own text repeats the address."""
    return os.strerror(error.errno) if error.errno else str(error)
