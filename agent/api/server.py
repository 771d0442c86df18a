"""The doors themselves: a TCP port, and a unix socket (mode 0660) for everything.

Where the port listens follows from what there is (entry/exposure.py), and changes with it.
"""

import asyncio
import resource
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec
from aiohttp import web

from agent.api.entry.access import Access
from agent.api.entry.doors import Door
from agent.api.entry.exposure import NoTokens, Tokens, checked, exposure, loopback, names
from agent.api.entry.guard import Guard
from agent.api.entry.http import Handler, unasked
from agent.api.entry.limits import LIMITS, Limits
from agent.api.entry.listening import Port, on_socket
from agent.api.entry.tls import Certificate
from agent.api.entry.traffic import Traffic
from agent.api.form import route as forms
from agent.api.form.asked import strict
from agent.api.form.events import Listeners
from agent.api.form.route import Route, get
from agent.api.routes.device import DeviceDoors, Metrics
from agent.api.routes.express import Express
from agent.api.routes.inference import Inference, InferenceDoors
from agent.clock import Clock
from agent.config import Api as Settings
from agent.errors import ConfigError
from agent.forms import SCOPES
from agent.health.conditions import Conditions
from agent.health.names import Name
from agent.health.status import Status

SHUTDOWN_S = 2.0
TOLD_S = 1.5  # of it
LOOK_S = 5.0
NEVER_S = 1e9
DESCRIPTORS_OWN = 256  # of the store, the link, the domains and the sources
CONDITION: tuple[Name, str] = ("api_loopback_only", "api.host")


class Server:
    """Open with `async with`; serves until left."""

    def __init__(
        self,
        settings: Settings,
        status: Status,
        metrics: Metrics,
        limits: Limits | None = None,
        more: Iterable[Route] = (),
        inference: Inference | None = None,
        *,
        conditions: Conditions | None = None,
        clock: Clock | None = None,
        tokens: Tokens | None = None,
        traffic: Traffic | None = None,
        guard: Guard | None = None,
        later: forms.Handler | None = None,
        listeners: Listeners | None = None,
    ) -> None:
        """`more` are the routes of other parts; `inference` also goes the short way, and `later`
        takes in what of it is not to be waited for. `listeners` are told when it ends.

        `traffic` counts, where somebody looks at it. Without a `guard`, nobody is known but by his
        connection. Raises ConfigError for settings that cannot hold.
        """
        self._settings = checked(settings)
        self._limits = limits or LIMITS._replace(tcp_places=settings.connections_max)
        clock = clock or Clock()
        self._conditions = conditions or Conditions(clock)
        self._certificate = Certificate(settings.tls, self._conditions, clock)
        self._tokens = tokens or NoTokens()
        self._tokens.changed.append(self.look_soon)
        self._asked = asyncio.Event()
        self._unix: asyncio.Server | None = None
        self._doors: list[Door] = []
        self._listeners = listeners
        self._traffic = traffic or Traffic(time.monotonic)
        self._guard = guard or Guard(Access(settings.loopback_scopes), settings.hosts, clock)
        self._express = Express(inference, self._guard, self._traffic) if inference else None
        self._routes = [
            *DeviceDoors(status, metrics, lambda: self._guard.active_requests).routes(),
            get(
                "/api/v1/openapi.json",
                self._openapi,
                "This document.",
                dict[str, Any],
                scopes=SCOPES,  # it is no secret: for whoever is anybody
            ),
            *(InferenceDoors(inference, later).routes() if inference else ()),
            *more,
        ]
        self._document = b""  # once somebody asked for it
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=SHUTDOWN_S)

    def _app(self) -> web.Application:
        """The routes, behind those who count and who let in."""
        app = web.Application(middlewares=[self._traffic.middleware, self._guard.middleware])
        app.on_response_prepare.append(self._guard.name_answer)
        paths = {route.path for route in self._routes}
        self._guard.routes = {
            app.router.add_route(
                method, route.pattern(paths), strict(route), expect_handler=unasked
            ): route
            for route in self._routes
            for method in ((route.method, "HEAD") if route.method == "GET" else (route.method,))
        }
        self._traffic.watch(app, self._guard.routes)
        return app

    async def __aenter__(self) -> Self:
        _enough_descriptors(self._limits)
        await self._runner.setup()
        where = self._settings
        self._port = Port(self._door("tcp", self._limits.tcp_places, tls=True), where.port)
        try:
            inside = self._door("socket", self._limits.socket_places)
            self._unix = await on_socket(inside, Path(where.socket), where.group)
            await self._certificate.look()
            await self._port.listen({loopback(where.host)})
            await self._expose()
        except BaseException:  # a cancellation too: no door stays open
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self) -> None:
        """See again and again, and when asked, what has changed of where it may listen."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            self._asked.clear()
            await self.look()

    async def look(self) -> None:
        """Take the certificate that there is now, and listen where that may be."""
        await self._certificate.look()
        await self._expose()

    def look_soon(self) -> None:
        """The certificate or the tokens may have changed."""
        self._asked.set()

    @property
    def active_requests(self) -> int:
        """Requests that are under way."""
        return self._guard.active_requests

    @property
    def port(self) -> int:
        """The TCP port that is served, also when the configuration says 0 (any)."""
        return self._port.number

    @property
    def url(self) -> str:
        """Where a program on this machine finds the port."""
        host = loopback(self._settings.host)
        scheme = "https" if self._certificate.context else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def _expose(self) -> None:
        """Listen where that may be, and say what keeps it from listening where it should."""
        found = exposure(
            self._settings,
            certificate=self._certificate.context is not None,
            token=self._tokens.any,
        )
        lacking = found.lacking
        try:
            await self._port.listen(found.addresses)
        except ConfigError as error:  # an address may come later, as with a network
            lacking = ((str(error), error.hint),)
            with suppress(ConfigError):  # as above
                await self._port.listen({loopback(self._settings.host)})
        self._tell(lacking)
        called = names(self._port.addresses)
        if called != self._guard.names:
            self._guard.names = called
            if self._express:
                self._express.forget()

    def _tell(self, lacking: Sequence[tuple[str, str]]) -> None:
        if not lacking:
            self._conditions.clear(*CONDITION)
            return
        causes, remedies = zip(*lacking, strict=True)
        self._conditions.hold(
            *(*CONDITION, "warning"),
            f"the API does not listen on {self._settings.host}, but on the loopback alone: "
            + "; ".join(causes),
            "; ".join(remedies),
        )

    def _door(self, name: str, places: int, *, tls: bool = False) -> Door:
        lanes = self._express.lane if self._express else None
        gate = self._traffic.gate(name, places)
        door = Door(self._handler, places, self._limits, lanes, gate=gate)
        if tls:
            door.tls = lambda: self._certificate.context
        self._doors.append(door)
        return door

    def _handler(self) -> Handler:
        assert self._runner.server is not None  # the runner is set up
        # What is compressed is unpacked by the doors that take such, within their bounds.
        return Handler(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=NEVER_S,  # the doors end what is idle; here, it may be in the lane
            unreadable=self._guard.refusals.unreadable,
        )

    async def close(self) -> None:
        """Take nobody in any more; who has asked has SHUTDOWN_S to get his answer."""
        self._port.close()
        if self._unix:
            self._unix.close()
        for door in self._doors:
            await door.close()
        if self._listeners:
            self._listeners.end()
        told = None
        if self._express:
            await self._express.close(SHUTDOWN_S)
            loop, end = asyncio.get_running_loop(), self._express.inference.end
            told = loop.call_later(TOLD_S, end)  # whom aiohttp serves, before it cuts them off
        await self._runner.cleanup()
        if told:
            told.cancel()
        if self._unix:
            Path(self._settings.socket).unlink(missing_ok=True)

    def document(self) -> dict[str, Any]:
        """The OpenAPI document of all doors."""
        from agent.api.form import openapi

        return openapi.document(self._routes)

    async def _openapi(self, _: web.Request) -> web.Response:
        if not self._document:
            self._document = msgspec.json.encode(await asyncio.to_thread(self.document))
        return web.Response(body=self._document, content_type="application/json")


def _enough_descriptors(limits: Limits) -> None:
    """Raises ConfigError where the connections would take those of the rest."""
    here, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.tcp_places + limits.socket_places + DESCRIPTORS_OWN
    if here != resource.RLIM_INFINITY and needed > here:
        raise ConfigError(
            f"api.connections_max: {limits.tcp_places} connections need {needed} open files in "
            f"all, and this process may have {here}",
            "set less, or allow more (LimitNOFILE= of its unit, or ulimit -n)",
        )
