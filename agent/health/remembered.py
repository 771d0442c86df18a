"""What the models were at when the agent ended without having been told to: it goes on from there.

The versions that serve are remembered elsewhere (inference/domains/choices.py), records, jobs and
orders in the store. Counters of calls begin at 0 with each start, as whoever adds them up expects.
A model whose GPU failed is proved on it anew, and falls again if it fails (domains/ladder.py).

Limits  : one small file, `remembered.json` beside the store. It is looked through each LOOK_S, and
          written when something of it began or ended; each KEEP_S while there is anything in it.
Format  : JSON, Standing, replaced as a whole and fsynced. Pauses are durations, as they were at
          `mono_s` of the boot `boot`: within it, what went by since counts.
Recovery: without the file, or with one that cannot be read (it is said), every model begins afresh.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from agent import plain_file, whole_file
from agent.clock import Clock
from agent.inference.domains.domain import Domain

log = logging.getLogger("domain")
LOOK_S = 5.0
KEEP_S = 300.0
FILE_BYTES_MAX = 1 << 20
Pause = Annotated[float, Meta(ge=0, le=1e9)]


class Standing(Struct, frozen=True):
    """Circuit breakers that are open, by version, and domains that rest."""

    boot: str = ""
    mono_s: float = 0.0
    breakers: dict[str, Pause] = {}
    resting: dict[str, Pause] = {}

    def alike(self, other: "Standing") -> bool:
        """Whether the same is in it; pauses go by."""
        mine = (self.breakers.keys(), self.resting.keys())
        return mine == (other.breakers.keys(), other.resting.keys())

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.breakers or self.resting)


class Breakers(Protocol):
    """Who has them; agent/inference/scheduler.py."""

    def open_breakers(self) -> dict[str, float]: ...  # noqa: D102
    def reopen(self, left_s: Mapping[str, float]) -> None: ...  # noqa: D102


class Domains(Protocol):
    """Who has them; agent/inference/domains/domains.py."""

    def all(self) -> list[Domain]: ...  # noqa: D102


class Remembered:
    """`restore` it before the domains run; `run` keeps it."""

    def __init__(self, path: Path, breakers: Breakers, domains: Domains, clock: Clock) -> None:
        self._path = path
        self._breakers = breakers
        self._domains = domains
        self._clock = clock
        self._kept = self._read()
        self._kept_s = clock.monotonic()

    def restore(self) -> None:
        """Have breakers and domains pause for as long as they still would have."""
        kept, gone_s = self._kept, 0.0
        if kept.boot == self._clock.boot:
            gone_s = max(0.0, self._clock.monotonic() - kept.mono_s)
        left_s = {label: max(0.0, pause - gone_s) for label, pause in kept.breakers.items()}
        self._breakers.reopen(left_s)
        for domain in self._domains.all():
            rest_s = kept.resting.get(domain.name, 0.0) - gone_s
            if rest_s > 0:
                domain.rest(rest_s)

    async def run(self) -> None:
        """Keep it, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """What `run` does each time."""
        standing = self._now()
        old = self._clock.monotonic() - self._kept_s >= KEEP_S and not standing.empty
        if old or not standing.alike(self._kept):
            await self.keep()

    async def keep(self) -> None:
        """Write it now; a disk that does not take it is other conditions' matter."""
        self._kept, self._kept_s = self._now(), self._clock.monotonic()
        content = msgspec.json.format(msgspec.json.encode(self._kept)) + b"\n"
        try:
            await asyncio.to_thread(whole_file.replace, self._path, content)
        except OSError as error:
            log.warning("%s: %s: after a crash it is as if that had not been", self._path, error)

    def _now(self) -> Standing:
        domains = self._domains.all()
        return Standing(
            self._clock.boot,
            self._clock.monotonic(),
            self._breakers.open_breakers(),
            {one.name: one.rest_s for one in domains if one.quarantined},
        )

    def _read(self) -> Standing:
        try:
            with plain_file.opened(self._path) as file:
                return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Standing)
        except FileNotFoundError:
            return Standing()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s: %s; every model begins afresh", self._path, error)
            return Standing()
