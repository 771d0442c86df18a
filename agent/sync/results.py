"""What the link tells of commands: how far they are, and how they ended, until somebody has it.

    asked   of orders that came over the link the first word and the end: at once, but for the
            rate (pace.py: owed)
    others  ends of the other doors: behind those, as the backlog goes, by rate, hours, pause, quota
    round   each time that readers.py says: all ends that nobody has yet, answers before others,
            the oldest first; while others may not go, of answers alone
    so far  how far any of them is: where somebody reads it, and when it may go

Each end is told once as it comes, whether anybody reads it (the broker's PUBACK says) or not.

Limits: TELL_MAX results in memory; OTHERS_MAX numbers of ends that wait for their turn: what is
beyond is left to a round. The journal has them all.
"""

import asyncio
import base64
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.clock import Clock
from agent.commands.desk import Desk
from agent.errors import LinkError, StoreError
from agent.protocol.commands import Result
from agent.store.journal import Entry, Journal, Refusal, Untold
from agent.sync.budget.pace import Pace
from agent.sync.mqtt.connection import Connection
from agent.sync.mqtt.reasons import NOBODY
from agent.sync.readers import Readers

TELL_MAX = 100
OTHERS_MAX = 1000
_BEHIND_ALL = 1 << 62  # no command has such a number
_ANSWERS: tuple[Untold, ...] = ("replies", "asked")

End = Entry | Refusal


class Reply(Struct, frozen=True):
    """Where MQTT 5 wants the answer: a topic, and what it knows the question by (base64)."""

    topic: str
    correlation: str = ""


class _Said(NamedTuple):
    """An end that was published, and the broker's word on each place of it."""

    end: End
    answers: "Sequence[asyncio.Future[int]]"


class Results:
    """One for all connections, one after the other."""

    def __init__(self, desk: Desk, journal: Journal, topic: str, pace: Pace, clock: Clock) -> None:
        self._desk = desk
        self._journal = journal
        self._topic = topic
        self._pace = pace
        self._open: set[int] = set()  # ordered over the link, and not ended yet
        self._unanswered: set[int] = set()  # of them, those of which nothing was told yet
        self._under_way: dict[int, Result] = {}  # to be told, the newest of each alone
        self._asked: dict[int, None] = {}  # numbers of ends that are to be told
        self._others: dict[int, None] = {}
        self._refused = False  # there may be refusals behind this one
        self._after_refusal = 0
        self._refused_others: list[Refusal] = []
        self._readers = Readers(clock)
        self._answers = 0  # how often something was told that somebody waited for
        self._others_due = False  # in a round: one of answers alone was before it
        self._more = asyncio.Event()
        desk.listeners.append(self._listen)

    def asked(self, result: Result, *, elsewhere: bool) -> None:
        """So was an order answered that came over the link; `elsewhere`: whoever gave it named a
        place of his own for that, and may read there alone."""
        if not result.ended:
            self._open.add(result.number)
            self._unanswered.add(result.number)
        elif result.number and elsewhere:  # the journal has it to be told again, and there
            self._asked[result.number] = None
        elif result.number:  # long ago: whoever orders it again is answered again
            self._under_way[result.number] = result
        if not elsewhere:
            self._readers.ordered()
        self._more.set()

    def _listen(self, result: Result) -> None:
        if not result.ended:
            self._under_way[result.number] = result
        elif not result.number:
            self._refused = True
        else:
            self._under_way.pop(result.number, None)
            asked = result.number in self._open
            self._open.discard(result.number)
            self._unanswered.discard(result.number)
            (self._asked if asked else self._others)[result.number] = None
            if len(self._others) > OTHERS_MAX:
                del self._others[next(iter(self._others))]
        self._more.set()

    async def run(self, connection: Connection) -> None:
        """Tell, as long as this connection lasts. Raises LinkError."""
        self._readers.connected()
        self._others.clear()  # the first round has them
        self._refused_others.clear()
        try:
            with suppress(StoreError):
                newest = await self._journal.refusals(1)
                self._after_refusal = newest[-1].number if newest else 0
                self._open |= {one.number for one in await self._journal.open() if _is_asked(one)}
            while True:
                await self._tell(connection)
        finally:
            self._under_way.clear()
            self._asked.clear()

    async def _tell(self, connection: Connection) -> None:
        """What there is to tell; then wait for more."""
        self._more.clear()
        with suppress(StoreError):  # the parts that need the store say so
            await self._answer(connection)
            await self._tell_others(connection)
            if self._others_due or not self._readers.left_s:
                self._others_due = False
                await self._round(connection, (*_ANSWERS, "others"))
        waiting = self._under_way, self._asked, self._others, self._refused_others
        if not (self._refused or self._others_due or any(waiting)):
            await self._more_within(self._readers.left_s)

    async def _more_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._more.wait()

    @property
    def _waited_for(self) -> bool:
        """Whether there is something to tell that somebody waits for."""
        return bool(self._under_way or self._asked or self._refused)

    async def _answer(self, connection: Connection) -> None:
        """Tell all that somebody waits for. Raises LinkError, StoreError."""
        while self._waited_for:
            self._answers += 1
            under_way, self._under_way = self._under_way, {}
            for result in under_way.values():
                await self._tell_how_far(connection, result)
            said: list[_Said] = []
            for end in await self._new():
                said.append(_Said(end, await self._tell_end(connection, end, owed=True)))
                said = await self._settle(connection, said)
            await self._settle(connection, said, wait=True)

    async def _tell_how_far(self, connection: Connection, result: Result) -> None:
        """Whoever asked is owed the first word; what follows goes where somebody reads it, and
        when it may."""
        owed = result.ended or result.number in self._unanswered
        self._unanswered.discard(result.number)
        if owed or (not self._readers.none and self._pace.allows(live=True)):
            await self._publish(connection, self._topic, result, owed=True)

    async def _new(self) -> list[End]:
        """Some of the ends that somebody waits for."""
        entries, _ = await self._journal.untold_of(_taken(self._asked))
        if not self._refused:
            return [*entries]
        self._refused = False
        _, refusals = await self._journal.untold(TELL_MAX, _BEHIND_ALL, self._after_refusal)
        if refusals:  # there may be more
            self._refused, self._after_refusal = True, refusals[-1].number
        others = [one for one in refusals if not _is_asked(one)]
        self._refused_others = [*self._refused_others, *others][-OTHERS_MAX:]
        return [*entries, *filter(_is_asked, refusals)]

    async def _tell_others(self, connection: Connection) -> None:
        """Tell the new ends of the other doors. Raises LinkError, StoreError."""
        while self._others or self._refused_others:
            refusals, self._refused_others = self._refused_others, []
            entries, _ = await self._journal.untold_of(_taken(self._others))
            await self._tell_in_turn(connection, [*entries, *refusals], each=True)

    async def _round(self, connection: Connection, whose: Sequence[Untold]) -> None:
        """Tell what nobody has: all that is wanted at a place of its own, and, as long as somebody
        reads, the rest. Raises LinkError, StoreError."""
        self._readers.begin()
        for of in whose:
            after, after_refusal, each = 0, 0, of == "replies"
            while each or not self._readers.none:
                entries, refusals = await self._journal.untold(TELL_MAX, after, after_refusal, of)
                if not entries and not refusals:
                    break
                await self._tell_in_turn(connection, [*entries, *refusals], each=each)
                after = entries[-1].number if entries else after
                after_refusal = refusals[-1].number if refusals else after_refusal

    async def _tell_in_turn(
        self, connection: Connection, ends: Sequence[End], *, each: bool
    ) -> None:
        """Tell these, behind whatever somebody waits for; without `each` as long as somebody
        reads them. Raises LinkError, StoreError."""
        said: list[_Said] = []
        before = self._answers
        for end in ends:
            if self._waited_for:  # among it may be what is out, without the broker's word yet
                said = await self._settle(connection, said, wait=True)
                await self._answer(connection)
            now = [end] if self._answers == before else await self._untold(end)
            if self._readers.none and not each:
                break
            for one in now:
                answers = await self._tell_end(connection, one, owed=_is_asked(one))
                said = await self._settle(
                    connection, [*said, _Said(one, answers)], wait=self._readers.reads is None
                )
        await self._settle(connection, said, wait=True)

    async def _untold(self, end: End) -> list[End]:
        """It, as the journal has it now; none where somebody has it."""
        is_entry = isinstance(end, Entry)
        of = ([end.number], []) if is_entry else ([], [end.number])
        entries, refusals = await self._journal.untold_of(*of)
        return [*entries, *refusals]

    async def _settle(
        self, connection: Connection, said: list[_Said], *, wait: bool = False
    ) -> list[_Said]:
        """Keep which of these somebody has, by the broker's word. Raises LinkError, StoreError.

        Those on which its word is out are left, and returned, unless it is to `wait` for it. Where
        no rate slows them down, it is kept for many at once.
        """
        if not wait and self._pace.rate.bytes_per_s_max is None:
            return said
        over = [one for one in said if wait or all(answer.done() for answer in one.answers)]
        had = [one.end for one in over if await _is_had(connection, one.answers)]
        if had:
            commands = [one.number for one in had if isinstance(one, Entry)]
            refusals = [one.number for one in had if isinstance(one, Refusal)]
            await self._journal.told(commands, refusals)
        return [one for one in said if one not in over]

    async def _tell_end(
        self, connection: Connection, end: End, *, owed: bool
    ) -> "Sequence[asyncio.Future[int]]":
        """Publish a final result, at each of its places; the futures of the broker's word.

        A place that somebody else named is told once, and no more: there are brokers that hang up
        on a topic that they do not like, and would again in each later connection.
        """
        result, said = self._desk.told(end), []
        if end.reply:
            reply = msgspec.json.decode(end.reply, type=Reply)
            correlation = base64.b64decode(reply.correlation)
            await self._journal.answering(end.number, end.reply, refusal=isinstance(end, Refusal))
            answer = self._publish(connection, reply.topic, result, correlation, owed=owed)
            said.append(await answer)
        return [*said, await self._publish(connection, self._topic, result, owed=owed)]

    async def _publish(
        self,
        connection: Connection,
        topic: str,
        result: Result,
        answers: bytes | None = None,
        *,
        owed: bool,
    ) -> "asyncio.Future[int]":
        """Raises LinkError, StoreError. What the broker does not take goes without its content."""
        payload, most = msgspec.json.encode(result), connection.payload_bytes_max
        if len(payload) > most:
            said = f"{topic}: {len(payload)} bytes are above the limit of {most}"
            payload = msgspec.json.encode(replace(result, result=None, message=said))
        await self._pay(connection, len(payload), owed=owed)
        answer = await connection.publish(topic, payload, answers=answers)
        if topic == self._topic:
            answer.add_done_callback(partial(self._answered, connection))
        return answer

    async def _pay(self, connection: Connection, size_bytes: int, *, owed: bool) -> None:
        """Wait until it may go. Whoever waits for an answer has it meanwhile, an old one, too."""
        if owed:
            await self._pace.take(size_bytes, live=True, owed=True)
            return
        while wait_s := self._pace.wait_s(size_bytes, live=False):
            self._more.clear()
            await self._more_within(wait_s)
            await self._answer(connection)
            if not self._readers.left_s:  # answers are owed: they do not wait in here again
                self._others_due = True
                await self._round(connection, _ANSWERS)
        self._pace.spent(size_bytes)

    def _answered(self, connection: Connection, answer: "asyncio.Future[int]") -> None:
        """The broker's word on a result: does anybody read them?"""
        if answer.cancelled() or (answer.exception() and connection.ended.done()):
            return
        self._readers.heard(reads=answer.exception() is None and answer.result() != NOBODY)
        self._more.set()


async def _is_had(connection: Connection, answers: "Sequence[asyncio.Future[int]]") -> bool:
    """Whether somebody has it, at any of its places. Raises LinkError at the end of the
    connection."""
    had = False
    for answer in answers:
        try:
            had = await answer != NOBODY or had
        except LinkError:  # the broker lets us tell nothing there: a condition says so
            if connection.ended.done():
                raise
    return had


def _is_asked(end: End) -> bool:
    """Whether somebody ordered it over the link, and waits for the answer there."""
    return end.door == "mqtt" or end.reply is not None


def _taken(numbers: dict[int, None]) -> list[int]:
    """The first of them, which are no longer among them."""
    some = list(numbers)[:TELL_MAX]
    for one in some:
        del numbers[one]
    return some
