"""Doors that are served alone, and a client at their socket, whose every exchange is checked."""

import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import aiohttp

from agent.api.form.route import Route
from agent.api.server import Server
from agent.clock import Clock
from agent.config import Api
from agent.health.conditions import Conditions
from agent.health.status import Identity, Status
from tests.api.checked import Checker


class Served:
    """A server with these doors, below `base`; an async context manager."""

    def __init__(self, folder: Path, base: str, doors: Iterable[Route], **more: Any) -> None:
        clock = Clock()
        status = Status(_identity, Conditions(clock), clock, _nothing, {}, folder / "status.json")
        self.base = base
        self.socket = str(folder / "holdfast.sock")
        self.server = Server(Api(port=0, socket=self.socket), status, _no_bytes, more=doors, **more)
        self.checker = Checker(self.server.document())
        self.client: aiohttp.ClientSession
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self.server)
        connector = aiohttp.UnixConnector(self.socket)
        self.client = aiohttp.ClientSession(connector=connector)
        await self._open.enter_async_context(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def ask(
        self, method: str, door: str = "", body: Any = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """The answer's status and document; a dict goes as JSON."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        url = self.base + door
        async with self.client.request(method, url, data=content, headers=headers) as answer:
            body = await answer.read()
            asked = content.encode() if isinstance(content, str) else content
            self.checker.check(method, url, asked, answer.status, answer.headers, body)
            return answer.status, json.loads(body)


def _identity() -> Identity:
    return {"device": "served", "version": "0"}


async def _nothing() -> dict[str, Any]:
    return {}


async def _no_bytes() -> bytes:
    return b""
