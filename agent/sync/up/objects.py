"""The HTTP side of a PUT: one request, paced, with no more than a piece of the blob in memory.

What cannot go on in time ends: the connection in `connect_timeout_s`, each step of the body and the
answer in `ack_timeout_s`. While the pace holds a step back, no time runs.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from agent.config import Link as Settings
from agent.errors import LinkError
from agent.resolver import Resolver
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.tasks import moved
from agent.threads import apart
from agent.words import quoted

STEP_BYTES = 8 * 1024  # sent at once: at the lowest rate that can be set, in 8 s
ANSWER_BYTES_MAX = 4096  # of what a store says when it refuses


class Unsafe(LinkError):
    """A URL that is none, or weaker than the link itself."""


class Stalled(LinkError):
    """It does not go on: a try more would only take as long again."""


class Body:
    """What is sent: `pieces` in paced steps. `fault` is what ended it from within, if anything."""

    def __init__(
        self, pieces: Callable[[], AsyncIterator[bytes]], pace: Pace, progress: Progress, live: bool
    ) -> None:
        self.fault: Exception | None = None
        self._pieces = pieces
        self._pace = pace
        self._progress = progress
        self._live = live

    async def steps(self, deadline: asyncio.Timeout, patience_s: float) -> AsyncIterator[bytes]:
        """The steps; each has `patience_s` to go out."""
        now = asyncio.get_running_loop().time
        try:
            async for piece in self._pieces():
                for start in range(0, len(piece), STEP_BYTES):
                    step = piece[start : start + STEP_BYTES]
                    moved(deadline, None)
                    await self._pace.take(len(step), live=self._live)
                    self._progress.sent(len(step))
                    moved(deadline, now() + patience_s)
                    yield step
        except Exception as error:  # any: it goes on
            self.fault = error  # aiohttp tells of it only in words
            raise


class Objects:
    """The client of object stores; use it with `async with`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # A connection of its own for each PUT: one that the store has closed by now would lose it.
        connector = aiohttp.TCPConnector(force_close=True, resolver=Resolver(), use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._settings.connect_timeout_s)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def put(self, url: str, headers: Mapping[str, str], size_bytes: int, body: Body) -> str:
        """PUT it; empty once the store took it, else why it did not.

        Raises Unsafe, Stalled, and whatever ended the body from within.
        """
        where, said = self._safe(url), CIMultiDict(headers)
        said["Content-Length"] = str(size_bytes)
        said.setdefault("Content-Type", "application/octet-stream")
        try:
            return await self._exchange(where, said, body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            fault = body.fault or error
            if isinstance(fault, TimeoutError):
                raise Stalled(
                    f"{where.host}: no answer in time",
                    "check the way from the device to the object store",
                ) from error
            if body.fault:
                raise body.fault from error
            return f"{where.host}: {_said(error)}"

    async def _exchange(self, where: URL, headers: CIMultiDict[str], body: Body) -> str:
        assert self._session, "used outside its `async with`"
        patience_s = self._settings.ack_timeout_s
        trusted = await apart(self._trusted) if where.scheme == "https" else True
        async with (
            asyncio.timeout(None) as deadline,
            self._session.put(
                where,
                data=body.steps(deadline, patience_s),
                headers=headers,
                allow_redirects=False,  # what is signed is signed for this host
                ssl=trusted,
            ) as answer,
        ):
            if answer.status == 200:
                return ""
            told = await answer.content.read(ANSWER_BYTES_MAX)
            code = re.search(rb"<Code>(\w{1,64})</Code>", told)
            named = code[1].decode() if code else ""
            return f"{where.host} answered {answer.status} {named}".strip()

    def _safe(self, url: str) -> URL:
        try:
            scheme, where = urlsplit(url).scheme, URL(url, encoded=True)
            named = where.host and where.port  # read here: not before is the port looked at
        except ValueError as error:
            raise Unsafe("the cloud granted what is no URL", "look at the ingest") from error
        plain = (self._settings.broker_url or "").startswith("mqtt:")
        if not named or (scheme != "https" and not (plain and scheme == "http")):
            raise Unsafe(
                f"the cloud granted a URL with {quoted(scheme) or 'no scheme'}; expected https",
                "give the object store a certificate: it must not be weaker than the link",
            )
        return where

    def _trusted(self) -> ssl.SSLContext:
        """Public authorities, and the one that the broker is trusted by."""
        context = ssl.create_default_context()
        if self._settings.ca_file:
            context.load_verify_locations(self._settings.ca_file)
        return context


def _said(error: Exception) -> str:
    """What an error says, but for the URL: who has that may write to the store."""
    match error:
        case aiohttp.ClientResponseError():
            return quoted(" ".join(error.message.split()))
        case aiohttp.InvalidURL():
            return "what the cloud granted is no URL"
        case _:
            return quoted(str(error))
