"""A listener to server-sent events, which reads them as the standard says."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp

from tests.api.checked import Checker


class Told(NamedTuple):
    name: str
    content: Any
    id: str = ""


class Listener:
    """Reads one answer; with a `checker`, each event is as its document says."""

    def __init__(self, answer: aiohttp.ClientResponse, checker: Checker | None = None) -> None:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        self.comments = 0
        self._checker = checker
        self._events = self._read(answer)

    async def next(self) -> Told | None:
        """The next event; None at the end."""
        return await anext(self._events, None)

    async def rest(self) -> list[Told]:
        return [one async for one in self._events]

    async def _read(self, answer: aiohttp.ClientResponse) -> AsyncIterator[Told]:
        fields: dict[str, str] = {}
        async for raw in answer.content:
            line = raw.decode().removesuffix("\n")
            word, _, said = line.partition(":")
            if not line and "data" in fields:
                if self._checker:
                    self._checker.check_event(answer.url.path, fields)
                yield Told(fields["event"], json.loads(fields["data"]), fields.get("id", ""))
            if not line:
                fields = {}
            elif not word:
                self.comments += 1
            else:
                assert word in ("event", "id", "data", "retry"), line
                assert word not in fields
                fields[word] = said.removeprefix(" ")
