"""Doors that ask who comes: a server with tokens and sessions, on a clock that stands still."""

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec

from agent.api.entry.access import Access
from agent.api.entry.guard import Guard
from agent.api.entry.sessions import COOKIE, Sessions
from agent.api.entry.tokens import Tokens
from agent.api.form.route import Route
from agent.api.routes.inference import Inference
from agent.api.routes.session import SESSION, SessionDoors
from agent.api.routes.tokens import TokenDoors
from agent.api.server import Server
from agent.clock import Clock
from agent.config import Api
from agent.forms import Scope
from agent.health.conditions import Conditions
from agent.health.status import Status

READ: tuple[Scope, ...] = ("read",)


class Still(Clock):
    """It is as late as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    document: dict[str, Any]


class Visitor:
    """A client by both ways; without cookies of its own."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        made = {"cookie_jar": aiohttp.DummyCookieJar()}
        self._by = {
            "tcp": aiohttp.ClientSession(**made),
            "unix": aiohttp.ClientSession(connector=aiohttp.UnixConnector(path), **made),
        }

    @property
    def origin(self) -> str:
        """What a browser says of the agent's own page."""
        return f"http://127.0.0.1:{self.port}"

    async def close(self) -> None:
        for one in self._by.values():
            await one.close()

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: Any = None,
        by: str = "tcp",
    ) -> Answer:
        url = f"{self.origin if by == 'tcp' else 'http://localhost'}{path}"
        content = msgspec.json.encode(body) if isinstance(body, dict) else body
        made = self._by[by].request(method, url, headers=headers, data=content)
        async with made as answer:
            said = await answer.read()
            document = msgspec.json.decode(said) if said.startswith(b"{") else {}
            return Answer(answer.status, answer.headers.copy(), document)


class Entrance:
    """The doors; an async context manager."""

    def __init__(
        self,
        folder: Path,
        more: Iterable[Route] = (),
        rate_per_s_max: float | None = None,
        inference: Inference | None = None,
        loopback: Iterable[Scope] = ("read", "infer"),
    ) -> None:
        self.clock = Still()
        self.path = folder / "tokens.json"
        self.socket = str(folder / "holdfast.sock")
        self.conditions = Conditions(self.clock)
        self.tokens = Tokens(self.path, self.conditions, self.clock)
        self.sessions = Sessions(self.tokens, self.clock)
        access = Access(loopback, self.tokens, self.sessions)
        self.guard = Guard(access, [], self.clock, rate_per_s_max)
        status = Status(dict, self.conditions, self.clock, _nothing, {}, folder / "status.json")
        doors = [
            *TokenDoors(self.tokens).routes(),
            *SessionDoors(self.tokens, self.sessions, self.guard.refusals).routes(),
            *more,
        ]
        where = Api(port=0, socket=self.socket)
        self.server = Server(
            *(where, status, _no_bytes),
            more=doors,
            inference=inference,
            guard=self.guard,
        )
        self.visitor: Visitor
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self.server)
        self.visitor = Visitor(self.server.port, self.socket)
        self._open.push_async_callback(self.visitor.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def token(self, *scopes: Scope, name: str = "a program") -> str:
        return (await self.tokens.create(name, scopes or READ))[1]

    async def login(self, text: str) -> dict[str, str]:
        """The header of a browser that has logged in."""
        answer = await self.visitor.ask("POST", SESSION, body={"token": text})
        assert answer.status == 200, answer
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        assert cookie.startswith(f"{COOKIE}=")
        return {"Cookie": cookie}


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def is_a_refusal(answer: Answer, status: int) -> bool:
    """Whether it is an error in the form of all our errors."""
    return answer.status == status and all(answer.document.get(k) for k in ("error", "hint"))


async def _nothing() -> dict[str, Any]:
    return {}


async def _no_bytes() -> bytes:
    return b""
