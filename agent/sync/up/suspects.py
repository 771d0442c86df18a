"""Records that do not get through although others do: held back, sent alone, given up at last.

Which they are, and when, is decided in tries.py; here it is done.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from msgspec import Struct

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError
from agent.health.conditions import Conditions
from agent.records import Range
from agent.store.leases import Spans
from agent.store.outbox import Name, Outbox
from agent.sync.mqtt.connection import TooLarge
from agent.sync.up.parcels import Parcel, cut, halves, tell_sent
from agent.sync.up.sending import Sender, all_of
from agent.sync.up.spans import meet, without
from agent.sync.up.tries import Suspect, Tries, Verdict
from agent.sync.up.waits import Out, Overdue, Waits
from agent.words import counted

log = logging.getLogger("link")
LOOK_S = 1.0
PLAIN_BYTES_MAX = 8 << 20  # of a suspect: it was a parcel once
SWALLOWED = "the broker took it, and no ack came, though others did"


class _Trial(Struct, eq=False):
    """A suspect that is alone with the connection."""

    suspect: Suspect
    parcel: Parcel
    begun_at: float


class _Case(Struct, frozen=True):
    """A try alone that is over."""

    suspect: Suspect
    parcel: Parcel
    verdict: Verdict
    cause: str


class Suspects:
    """Over all connections."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
        waits: Waits,
        taken: Callable[[Out, str], Awaitable[None]],
    ) -> None:
        """`taken` is called when the broker has answered a parcel: with what it said, if a no."""
        self._settings = settings
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._waits = waits
        self._taken = taken
        self._tries = Tries(settings.tries_max, settings.ack_timeout_s)
        self._connected_at = 0.0
        self._trial: _Trial | None = None
        self._open: dict[Parcel, Suspect] = {}  # sent alone, not acknowledged yet
        self._cases: list[_Case] = []  # that ended with a connection
        self._told: set[str] = set()  # streams of which a condition tells

    def connected(self) -> None:
        """A connection begins."""
        self._connected_at = self._clock.monotonic()

    async def run(self, sender: Sender) -> None:
        """Send them alone, one after the other, as their turn comes."""
        while not sender.is_over:
            while self._cases:
                await self._conclude(self._cases.pop())
            now = self._clock.monotonic()
            suspect = self._tries.due(now, now - self._connected_at)
            if suspect and sender.is_allowed:
                await self._try(sender, suspect)
            else:
                await asyncio.sleep(min(LOOK_S, self._settings.ack_timeout_s / 4))

    async def _try(self, sender: Sender, suspect: Suspect) -> None:
        records_max = self._settings.batch_records_max
        leased = await self._outbox.lease_span(
            suspect.name, suspect.span, records_max, PLAIN_BYTES_MAX
        )
        if leased is None:  # acknowledged, dropped or decided on meanwhile
            self._forget(suspect)
            return
        parcels = cut(leased, alone=True)
        if parcels[0].span != suspect.span:
            self._outbox.release(suspect.name, leased.span)
            spans = [parcel.span for parcel in parcels]
            self._tries.divide(suspect, [*spans, *without(suspect.span, [leased.span])])
            return
        suspect.is_out = True
        out = self._waits.add(parcels[0])
        self._open[out.parcel] = suspect
        try:
            await self._send_alone(sender, suspect, out.parcel)
        except TooLarge as error:
            self._waits.remove(out)
            await self._conclude(self._too_large(suspect, out.parcel, error))
        except LinkError as error:
            if not sender.is_over:
                await self._taken(out, str(error))
        else:
            await self._taken(out, "")

    async def _send_alone(self, sender: Sender, suspect: Suspect, parcel: Parcel) -> None:
        payload = sender.encode(parcel)
        await sender.pay(parcel, payload)
        async with sender.gate.alone():
            self._trial = _Trial(suspect, parcel, self._clock.monotonic())
            answers = await sender.send(parcel, payload, paid=True)
            tell_sent(parcel, len(payload))
            try:
                await all_of(answers)
            finally:
                if parcel not in sender.unanswered:
                    self._trial = None

    def _too_large(self, suspect: Suspect, parcel: Parcel, error: TooLarge) -> _Case:
        verdict: Verdict = "divide" if halves(parcel) else "dead"
        return _Case(suspect, parcel, verdict, f"{error}; {error.hint}")

    def broke(self, reason: str, unanswered: list[Parcel]) -> None:
        """The connection ended; these were out, and the broker had not answered them."""
        now, cause = self._clock.monotonic(), f"the connection ended: {reason}"
        if self._trial:
            suspect, parcel = self._trial.suspect, self._trial.parcel
            up_s, took_s = self._trial.begun_at - self._connected_at, now - self._trial.begun_at
            single = not halves(parcel)
            verdict = self._tries.alone_broke(suspect, up_s, took_s, single=single, now=now)
            self._cases.append(_Case(suspect, parcel, verdict, self._alone(cause)))
            return
        spans = [(parcel.name, parcel.span) for parcel in unanswered]
        for number in self._tries.broke(spans, cause, now):
            self._hold_back(*spans[number])

    def ended(self) -> None:
        """Nothing is out any more."""
        self._trial = None
        self._open.clear()
        self._tries.ended()

    async def late(self, late: Iterable[Overdue]) -> None:
        """These were answered by the broker, and no ack came in time; they are out no more."""
        now = self._clock.monotonic()
        for one in late:
            parcel, cause = one.out.parcel, one.out.refused or SWALLOWED
            suspect = self._open.pop(parcel, None)
            if suspect:
                single = not halves(parcel)
                verdict = self._tries.alone_failed(
                    suspect, overtaken=one.overtaken, single=single, now=now
                )
                await self._conclude(_Case(suspect, parcel, verdict, self._alone(cause)))
            elif one.overtaken and self._tries.failed(parcel.name, parcel.span, cause, now):
                self._hold_back(parcel.name, parcel.span)
            self._outbox.release(parcel.name, parcel.span)

    def _alone(self, cause: str) -> str:
        return f"sent alone {self._settings.tries_max} times while others got through: {cause}"

    def through(
        self, name: Name, ranges: list[Range], dead: list[Range], answered: Iterable[Out]
    ) -> None:
        """The far side has `ranges`, but for the `dead`; these parcels it `answered`."""
        there = Spans(ranges if self._tries.suspects else ())
        for one in dead if there else ():  # they may be suspects again
            there.remove(one)
        known = list(there)
        spans = [out.parcel.span for out in answered]
        for out in answered:
            self._open.pop(out.parcel, None)
        for span in self._tries.through(
            name, lambda span: without(span, known), spans, self._clock.monotonic()
        ):
            self._outbox.let_go(name, span)
        self._tell(name[1])

    async def refused(self, name: Name, ranges: list[Range]) -> None:
        """The ingest cannot store these: what is out of them is dead."""
        if not ranges:
            return
        for out in self._waits.of(name):
            if not any(meet(out.parcel.span, one) for one in ranges):
                continue
            for record in out.parcel.records:
                here = Range(record.seq, record.seq)
                if any(meet(here, one) for one in ranges):
                    await self._bury(name, record.seq, "refused by the ingest")

    async def bury(self, parcel: Parcel, cause: str) -> None:
        """A parcel of one record is given up."""
        if parcel.records:
            await self._bury(parcel.name, parcel.records[0].seq, cause)
        self._outbox.release(parcel.name, parcel.span)

    async def _bury(self, name: Name, seq: int, cause: str) -> None:
        if await self._outbox.bury(name, seq, cause):  # health/letters.py says that there are some
            log.warning("%s #%d is held as a dead letter: %s", name[1], seq, cause)

    async def _conclude(self, case: _Case) -> None:
        suspect, parcel = case.suspect, case.parcel
        if suspect not in self._tries.suspects:  # an ack came for some of it: divided already
            return
        if case.verdict == "divide":
            self._tries.divide(suspect, [half.span for half in halves(parcel)])
        elif case.verdict == "dead":
            await self.bury(parcel, case.cause)
            self._forget(suspect)
        if case.verdict != "again":
            self._outbox.release(parcel.name, parcel.span)
        self._tell(suspect.name[1])

    def _forget(self, suspect: Suspect) -> None:
        self._tries.forget(suspect)
        self._outbox.let_go(suspect.name, suspect.span)
        self._tell(suspect.name[1])

    def _hold_back(self, name: Name, span: Range) -> None:
        self._outbox.hold_back(name, span)
        self._tell(name[1])

    def _tell(self, stream: str) -> None:
        """Of the suspects of a stream, as a condition."""
        found = [one for one in self._tries.suspects if one.name[1] == stream]
        if not found:
            if stream in self._told:
                self._told.discard(stream)
                self._conditions.clear("held_back", stream)
            return
        self._told.add(stream)
        first = min(found, key=lambda one: one.span.first)
        what = counted(
            len(found), "span does not get through and is", "spans do not get through and are"
        )
        self._conditions.hold(
            "held_back",
            stream,
            "warning",
            f"{what} sent alone; the first, #{first.span.first}-{first.span.last}: {first.cause}",
            "nothing has to be done: what is at fault is found and kept as a dead letter, the rest "
            "is delivered",
        )
