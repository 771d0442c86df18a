"""A machine with a file of --config, a state folder, and versions whose hands are a test's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from agent.clock import Clock
from agent.config import Config
from agent.errors import HoldfastError
from agent.health.conditions import Condition, Conditions
from agent.versions.judge import Seen
from agent.versions.notices import Notices
from agent.versions.plan import Hot
from agent.versions.start import Begun, begin
from agent.versions.versions import Versions
from agent.versions.wish import Wish

FIRST = "# the first one, by hand\nlink:   {ack_from: broker}   # aligned so\nlog_level: info\n"


class Bent(Clock):
    """Its monotonic clock goes on when a test says so; its wall clock is where it is put."""

    def __init__(self, wall_s: float = 0.0) -> None:
        super().__init__()
        self.gone_s = 0.0
        self.wall_s = wall_s

    def monotonic(self) -> float:
        return super().monotonic() + self.gone_s

    def wall(self) -> float:
        return self.wall_s


class Site:
    """Of one device."""

    def __init__(self, folder: Path, text: str = FIRST) -> None:
        self.file = folder / "etc" / "config.yaml"
        self.state = folder / "state"
        self.file.parent.mkdir()
        self.state.mkdir()
        self.file.write_text(text)
        self.clock = Bent()

    @property
    def kept(self) -> Path:
        return self.state / "config"

    def begin(self, *, service: bool = True) -> Begun:
        """A start of the agent; the one before is over."""
        begun = begin(self.file, self.state if service else None, self.clock)
        if begun.kept.folder:
            begun.kept.folder.leave()
        return begun

    def steps(self, begun: Begun) -> list[tuple[int, str]]:
        return [(one.number, one.state) for one in begun.kept.book.steps]


class Hands:
    """What would change the agent's sections: it notes what it is told, and may refuse."""

    def __init__(self, begun: Begun, clock: Clock) -> None:
        self.done: list[tuple[str, Any]] = []
        self.refuses: Callable[[str, Config], str] = lambda *_: ""  # a section; why it does
        self.restarts: list[str] = []
        self.link_s: float | None = 600.0
        self.held: list[Condition] = []
        self.conditions = Conditions(clock)
        hot = {name: self._hot(name) for name in ("domains", "link", "log_level")}
        self.versions = Versions(
            *(begun, hot, lambda: Seen(self.link_s, self.held)),
            *(self.restarts.append, Notices(self.conditions), clock),
        )

    def _hot(self, name: str) -> Hot:
        async def change(settings: Config) -> dict[str, str]:
            if why := self.refuses(name, settings):
                raise HoldfastError(why, "another one")
            self.done.append((name, getattr(settings, name)))
            return {}

        return Hot(lambda _, __: "", change)

    def names(self) -> set[str]:
        return {one.name for one in self.conditions.all()}


@asynccontextmanager
async def runs(begun: Begun, clock: Clock) -> AsyncIterator[Hands]:
    """The agent is up; whatever happens, its watch ends."""
    hands = Hands(begun, clock)
    task = asyncio.create_task(hands.versions.run())
    try:
        yield hands
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def document(**changes: Any) -> bytes:
    """A configuration with these sections in place of the first one's."""
    return yaml.safe_dump({**yaml.safe_load(FIRST), **changes}).encode()


def wish(**rules: Any) -> Wish:
    return Wish(**{"document": document(log_level="debug"), "order": "an-order", **rules})


def condition(name: str, severity: Any = "warning", subject: str = "x") -> Condition:
    return Condition(name, subject, severity, "why", "remedy", 0, 0.0)
