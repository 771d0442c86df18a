"""The doors themselves: a TCP port for reading and a unix socket (mode 0660) for everything."""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Self

from aiohttp import web

from agent.api.answers import document
from agent.api.doors import LIMITS, Door, Limits
from agent.api.express import Express
from agent.api.guard import Guard
from agent.api.inference import Inference, InferenceDoors
from agent.config import Api as Settings
from agent.errors import ConfigError
from agent.health.status import Status

SOCKET_MODE = 0o660
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"  # which every scraper reads
SHUTDOWN_S = 2.0
HINTS = {  # by what the system says of the port
    errno.EADDRINUSE: "stop what holds the port, or set another api.port",
    errno.EACCES: "set a higher api.port: this user may not listen on one so low",
    errno.EADDRNOTAVAIL: "set another api.host: this machine has no such address",
    errno.EAFNOSUPPORT: "set another api.host: this machine has no such address",
}


class Server:
    """Open with `async with`; serves until left."""

    def __init__(
        self,
        settings: Settings,
        status: Status,
        metrics: Callable[[], Awaitable[bytes]],
        limits: Limits = LIMITS,
        more: Iterable[web.RouteDef] = (),
        inference: Inference | None = None,
    ) -> None:
        """`more` are the routes of other parts; `inference` also goes the short way."""
        self._limits = limits
        self._listening: list[asyncio.Server] = []
        self._settings = settings
        self._status = status
        self._metrics = metrics
        self._guard = Guard(settings.hosts)
        self._express = Express(inference, self._guard) if inference else None
        app = web.Application(middlewares=[self._guard.middleware])
        app.add_routes(
            [
                web.get("/api/v1/health", self._health),
                web.get("/api/v1/status", self._whole_status),
                web.get("/metrics", self._all_metrics),
                *(InferenceDoors(inference).routes() if inference else ()),
                *more,
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        where = self._settings
        try:
            await self._bind(Path(where.socket))
            door = self._door(self._limits.tcp_places)
            loop = asyncio.get_running_loop()
            self._listening.append(await loop.create_server(door, where.host, where.port))
        except OSError as error:
            await self._close()
            raise ConfigError(
                f"api.port: {where.host}:{where.port}: {_said(error)}",
                HINTS.get(error.errno or 0, "set another api.port"),
            ) from error
        except ConfigError:
            await self._runner.cleanup()
            raise
        return self

    def _door(self, places: int) -> Door:
        assert self._runner.server is not None  # the runner is set up
        lanes = self._express.lane if self._express else None
        return Door(self._runner.server, places, self._limits, lanes)

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        for server in self._listening:
            server.close()
        if self._express:
            await self._express.close(SHUTDOWN_S)
        await self._runner.cleanup()
        Path(self._settings.socket).unlink(missing_ok=True)

    async def _bind(self, path: Path) -> None:
        """Serve on the unix socket; one that a killed agent left is taken over, nothing else is."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_socket() and not _answers(path):
                path.unlink()
            if path.exists():
                raise ConfigError(
                    f"api.socket: {path}: there is something else, or another agent serves on it",
                    "set another api.socket",
                )
            door = self._door(self._limits.socket_places)
            loop = asyncio.get_running_loop()
            self._listening.append(await loop.create_unix_server(door, str(path)))
            path.chmod(SOCKET_MODE)
        except OSError as error:
            raise ConfigError(
                f"api.socket: {path}: {error.strerror or error}",
                "name a folder this user may write to" if error.errno else "name a shorter path",
            ) from error

    @property
    def port(self) -> int:
        """The TCP port that is served, also when the configuration says 0 (any)."""
        sockets = [sock for server in self._listening for sock in server.sockets]
        return int(next(s.getsockname()[1] for s in sockets if s.family != socket.AF_UNIX))

    async def _health(self, _: web.Request) -> web.Response:
        health = self._status.health(self._guard.active_requests)
        return document(health, 503 if health["status"] == "unhealthy" else 200)

    async def _whole_status(self, _: web.Request) -> web.Response:
        return document(await self._status.document())

    async def _all_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._metrics(), headers={"Content-Type": EXPOSITION})


def _answers(path: Path) -> bool:
    """Whether somebody may serve on a unix socket: only a refusal says that nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def _said(error: OSError) -> str:
    """What the system says; the loop's own text repeats the address."""
    return os.strerror(error.errno) if error.errno else str(error)
