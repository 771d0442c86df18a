"""Carrying commands out: lanes, time, what a handler says of its progress, and how it ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any

import msgspec

from agent.clock import Clock
from agent.commands import shown
from agent.commands.catalogue import Catalogue
from agent.commands.verb import Verb
from agent.errors import HoldfastError, NotNow, NotThere, RequestError, StoreDamaged, StoreError
from agent.protocol.commands import RESULT_BYTES_MAX, Result
from agent.store.journal import End, Entry, Journal
from agent.tasks import Crew
from agent.words import quoted

log = logging.getLogger("commands")
AT_ONCE_MAX = 16  # handlers, of all lanes
ATTEMPTS_MAX = 5  # begun so often and never ended: it is what ends the agent
TELL_S = 1.0  # how often progress is told
RETRY_S = 2.0  # until the store takes what became of a command
MESSAGE_CHARS_MAX = 2000
_BROKEN = End(
    state="interrupted",
    reason="interrupted",
    message="the agent ended while it ran, and it cannot be gone on with",
    hint="look whether it had an effect; order it again under a new id, if it had none",
)


class Runs:
    """Used on the event loop."""

    def __init__(
        self,
        journal: Journal,
        catalogue: Catalogue,
        device: str,
        clock: Clock,
        tell: Callable[[Result], None],
    ) -> None:
        self._device = device
        self._journal = journal
        self._catalogue = catalogue
        self._clock = clock
        self._tell = tell
        self._crew = Crew()
        self._lanes: dict[str, asyncio.Lock] = {}
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self._known: set[int] = set()  # numbers that have a task
        self._early: list[Entry] | None = []  # as long as it is not known what was begun before
        self._calls: dict[int, _Call] = {}

    async def run(self) -> None:
        """Go on with what the journal holds; then wait for what nobody expected, and raise it."""
        try:
            before = await self._unended()
            early, self._early = self._early or [], None
            for entry in (*before, *early):  # what came meanwhile is behind what came before
                self.begin(entry)
            await self._crew.run()
        finally:
            await self._crew.end()
            with suppress(StoreError):  # then it counts as an end that nobody wanted
                await self._journal.put_down()

    def begin(self, entry: Entry) -> None:
        """Have a command carried out when it is its turn."""
        if self._early is not None:
            self._early.append(entry)
        elif entry.number not in self._known and entry.ended_us is None:
            self._known.add(entry.number)
            self._crew.begin(self._in_turn(entry))

    def progress(self, number: int) -> tuple[float | None, str]:
        """What the handler of a command said last."""
        call = self._calls.get(number)
        return (call.share, call.message) if call else (None, "")

    async def _unended(self) -> list[Entry]:
        while True:
            try:
                return await self._journal.open()
            except StoreError as error:
                log.warning("commands wait for the store: %s", error)
                await asyncio.sleep(RETRY_S)

    async def cancel(self, entry: Entry, who: str) -> Entry | None:
        """End a command that has not begun; it, as it is now. None: the row is gone."""
        how = End(
            state="interrupted",
            reason="cancelled",
            message=f"cancelled before it began, by {who}",
        )
        ended: Entry | None = await _surely(lambda: self._journal.cancel(entry.number, how))
        if ended and ended.reason == how.reason:
            self._tell(shown.result(ended, self._device))
        return ended

    async def _in_turn(self, entry: Entry) -> None:
        verb = None
        with suppress(NotThere):
            verb = self._catalogue.verb(entry.name)
        lane: AbstractAsyncContextManager[Any] = nullcontext()
        if verb and verb.lane:  # whoever comes first, first
            lane = self._lanes.setdefault(verb.lane, asyncio.Lock())
        try:
            async with lane, nullcontext() if verb and verb.about else self._room:
                await self._carry_out(entry)
        finally:
            self._known.discard(entry.number)

    async def _carry_out(self, entry: Entry) -> None:
        how = await self._outcome(entry)
        if how is None:
            return
        ended = await _surely(lambda: self._journal.end(entry.number, how))
        if ended is not None:
            log.info("%s %r %s%s", ended.name, ended.id, ended.state, _said(ended))
            self._tell(shown.result(ended, self._device))

    async def _outcome(self, entry: Entry) -> End | None:
        """Run it, if it is to be run; how it ended. None: it had by then."""
        try:
            verb = self._catalogue.verb(entry.name)
            args = self._catalogue.args(verb, msgspec.json.decode(entry.args))
        except RequestError as error:  # another Holdfast accepted it
            reason = "unknown_command" if isinstance(error, NotThere) else "bad_args"
            return _failed(error, reason)
        begun = entry.state == "running"
        if begun and verb.resume is None:
            return _BROKEN
        if entry.attempts >= ATTEMPTS_MAX:
            return End(
                state="failed",
                reason="failed",
                message=f"the agent ended {entry.attempts} times while it ran",
                hint="look into the log of those starts: holdfast logs",
            )
        if not begun:
            left_s = await _surely(lambda: self._journal.left_s(entry))
            if left_s is not None and left_s <= 0:
                return End(
                    state="expired", reason="too_old", message="it expired before its turn came"
                )
        running = await _surely(lambda: self._journal.begin(entry.number))
        if running is None:
            return _BROKEN
        if running.ended_us is not None:
            return None
        self._tell(shown.result(running, self._device))
        handler = verb.resume if begun and verb.resume else verb.run
        return await self._handled(verb, running, handler(args, self._call(running)))

    def _call(self, entry: Entry) -> "_Call":
        call = _Call(entry, self._journal, self._device, self._clock, self._tell)
        self._calls[entry.number] = call
        return call

    async def _handled(self, verb: Verb[Any], entry: Entry, work: Awaitable[Any]) -> End:
        try:
            async with asyncio.timeout(verb.timeout_s) as limit:
                answer = await work
        except TimeoutError as error:
            if not limit.expired():
                return _failed(HoldfastError(f"what it asked did not answer: {error!r}"), "failed")
            return End(
                state="failed",
                reason="timeout",
                message=f"it was not done within {verb.timeout_s:g} s",
                hint="look at what it works on: holdfast status",
            )
        except HoldfastError as error:
            return _failed(error, "not_now" if isinstance(error, NotNow) else "failed")
        except Exception as error:  # what somebody far away says must not end the agent
            log.exception("%s %r: a fault in the agent", entry.name, entry.id)
            return End(
                state="failed",
                reason="failed",
                message=quoted(f"a fault in the agent: {error!r}"),
                hint="report it, with `holdfast logs`",
            )
        finally:
            self._calls.pop(entry.number, None)
        encoded = msgspec.json.encode(answer)
        if len(encoded) > RESULT_BYTES_MAX:
            said = f"done; its result of {len(encoded)} bytes is more than is told"
            return End(state="succeeded", message=said)
        return End(state="succeeded", result=encoded)


async def _surely(asked: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What the journal answers, however long the store cannot; None where the row is gone."""
    while True:
        try:
            return await asked()
        except StoreDamaged as error:
            log.warning("%s", error)
            return None
        except StoreError as error:
            log.warning("a command waits for the store: %s", error)
            await asyncio.sleep(RETRY_S)


class _Call:
    """The order at hand, as its handler sees it (verb.Call)."""

    def __init__(
        self,
        entry: Entry,
        journal: Journal,
        device: str,
        clock: Clock,
        tell: Callable[[Result], None],
    ) -> None:
        self.id = entry.id
        whose = f" of {entry.issuer}" if entry.issuer else ""
        self.who = f"command {entry.id}{whose} by {entry.door}"
        self.step = entry.step
        self.share: float | None = None
        self.message = ""
        self._entry = entry
        self._device = device
        self._journal = journal
        self._clock = clock
        self._tell = tell
        self._told_at = 0.0

    async def note(self, step: str) -> None:
        """As Call has it."""
        await _surely(lambda: self._journal.note(self._entry.number, step))
        self.step = step

    async def tell(self, progress: float, message: str = "") -> None:
        """As Call has it."""
        self.share, self.message = min(1.0, max(0.0, progress)), message[:MESSAGE_CHARS_MAX]
        now = self._clock.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell(shown.result(self._entry, self._device, self.share, self.message))


def _failed(error: HoldfastError, reason: str) -> End:
    message = str(error)[:MESSAGE_CHARS_MAX]
    return End(state="failed", reason=reason, message=message, hint=error.hint)


def _said(ended: Entry) -> str:
    return f": {ended.message}" if ended.message else ""
