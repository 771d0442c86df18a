"""Where content comes from, as all ways have it: files of a repository, from any byte on."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, Self

from agent.errors import HoldfastError


class Absent(HoldfastError):
    """The source answers, and has no such file."""


class Away(HoldfastError):
    """The source does not answer, or no longer; what has come so far counts."""


class Source(Protocol):
    """A repository that can be read, used with `async with`. Nothing that it says is trusted."""

    @property
    def name(self) -> str:
        """What people know it by: a URL, a folder."""

    async def __aenter__(self) -> Self:
        """Raises Away."""

    async def __aexit__(self, *_: object) -> None:
        """Nothing of it stays open."""

    def pieces(self, path: str, start: int, span_bytes: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a file from `start` on, to its end, or as many as `span_bytes` and perhaps
        a few more. Raises Absent, Away."""


def foreign(named: str, urls: Sequence[str]) -> str:
    """The source that an order names, where it is none of those in `updates.urls`; else ''."""
    return "" if not named or _plain(named) in map(_plain, urls) else named


def _plain(source: str) -> str:
    """The same for all ways to write it that people mix."""
    return source.removeprefix("file://").rstrip("/")
