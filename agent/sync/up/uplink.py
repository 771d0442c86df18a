"""What goes up: records in batches, blobs in pieces, until somebody who counts has them.

Many messages are in flight: as many bytes as the line takes (window.py), live ones before all
others (gate.py), and each batch is a small part of that, so that others can come between. For each
parcel the blobs go first, piece by piece, then the batch.
Who counts is `ack_from`: `broker`, then a parcel is done when the broker has taken all of it;
`ingest`, then it is done when the far database says so (ack.py), and the lease runs until then.
What is out without an ack is bounded by `unacked_bytes_max`; what is not answered is sent again
(waits.py), and what never is, though others are, is a matter of its own (suspects.py). Acks are
taken in hearing.py.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import LinkError
from agent.health.conditions import Conditions
from agent.protocol.topics import Topics
from agent.store.outbox import Batch, Outbox
from agent.sync.budget.pace import Pace
from agent.sync.budget.progress import Progress
from agent.sync.mqtt.connection import Connection
from agent.sync.mqtt.faults import TooLarge
from agent.sync.up.gate import Gate
from agent.sync.up.gathering import Gathering
from agent.sync.up.hearing import Hearing
from agent.sync.up.parcels import Ratio, cut, halves, tell_sent
from agent.sync.up.puts import Puts
from agent.sync.up.rounds import Rounds
from agent.sync.up.sending import Answers, Parts, Sender, all_of
from agent.sync.up.suspects import Suspects
from agent.sync.up.waits import Out, Waits
from agent.sync.up.window import Window

log = logging.getLogger("link")
FIRST_ACK_S = 2.0  # so long the backlog waits, after connecting, for what the ingest has
BACKLOG_SENDING_MAX = 2  # leases of which not all is handed over; the next is read meanwhile
LIVE_SENDING_MAX = 32
LOOK_S = 1.0  # how often what may have changed unheard is looked at


class Uplink:
    """Sends what the outbox holds over whatever connection there is."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
        pace: Pace,
        progress: Progress,
        puts: Puts | None = None,
    ) -> None:
        """`puts`: blobs go by PUT, where the cloud grants it."""
        self._settings = settings
        self._device = device
        self._topics = Topics(settings.topic_prefix, device)
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._pace = pace
        self._progress = progress
        self._puts = puts
        self._ratio = Ratio()
        self._parts = Parts()
        self._waits = Waits(settings.ack_timeout_s)
        self._gathering = Gathering(settings.batch_s, outbox, clock)
        self._suspects = Suspects(*(settings, outbox, conditions, clock, self._waits, self._taken))
        self._hearing = Hearing(
            *(settings, device, outbox, conditions, clock, progress),
            *(self._waits, self._suspects, self._parts),
        )
        self.heard = self._hearing.heard  # an ack came
        self._sending = {True: 0, False: 0}  # leases, by whether they are live
        self.rounds = Rounds("next", "late")

    @property
    def round_s_max(self) -> float:
        """How long a round takes at most, but for the store, whatever network and broker do."""
        return self._settings.batch_s + 2 * LOOK_S

    async def run(self, connection: Connection) -> None:
        """Send until it is cancelled; whatever was out before it is sent again."""
        window = Window(self._clock.monotonic)
        gate = Gate(window, connection.terms.in_flight_max, self._outbox.more.set)
        sender = Sender(
            *(connection, gate, self._outbox, self._pace, self._progress),
            *(self._device, self._topics, self._ratio, self._parts, self._puts),
        )
        self._suspects.connected()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._begin())
                group.create_task(self._hearing.run())
                group.create_task(self._look_after())
                group.create_task(self._suspects.run(sender))
                while True:
                    self._ship(group, sender, await self._next(sender))
        finally:  # nothing is out any more: what is held may be evicted again
            if connection.ended.done():
                self._suspects.broke(connection.ended.result(), list(sender.unanswered))
            self._suspects.ended()
            self._outbox.rewind()
            self._waits.clear()
            self._hearing.begun.clear()
            self._sending = {True: 0, False: 0}

    async def _begin(self) -> None:
        """Until the ingest has said what it has, the backlog waits: a stick may have carried it."""
        if self._settings.ack_from == "ingest":
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_ACK_S):
                    await self._hearing.begun.wait()
        self._hearing.begun.set()
        self._outbox.more.set()

    def granted(self, payload: bytes) -> None:
        """The cloud answered about a blob."""
        if self._puts:
            self._puts.heard(payload)

    async def _next(self, sender: Sender) -> Batch:
        """The next lease; waits until there is one."""
        while True:
            if not sender.stands:
                self.rounds.came("next")
            self._outbox.more.clear()
            await self._gathering.wait(self._waits.bytes, sender.plain_bytes_max)
            if leased := await self._lease(sender):
                full = sender.plain_bytes_max // 2, self._settings.batch_records_max
                self._gathering.note(leased, *full)
                return leased
            self._gathering.begin()
            # A pause or the day's quota may end, dropped ranges have waited, and nobody says so.
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._outbox.more.wait()

    async def _lease(self, sender: Sender) -> Batch | None:
        live, backlog = self._has_room(live=True), self._has_room(live=False)
        if not (live or (backlog and self._hearing.begun.is_set())):
            return None
        return await self._outbox.lease(
            self._settings.batch_records_max,
            sender.plain_bytes_max,
            self._settings.live_s,
            live_only=not (backlog and self._hearing.begun.is_set()),
        )

    def _has_room(self, *, live: bool) -> bool:
        sending_max = LIVE_SENDING_MAX if live else BACKLOG_SENDING_MAX
        return (
            self._sending[live] < sending_max
            and self._pace.allows(live=live)
            and self._waits.has_room(self._settings.unacked_bytes_max, live=live)
        )

    def _ship(self, group: asyncio.TaskGroup, sender: Sender, leased: Batch) -> None:
        """Send what was leased, in a task of its own."""
        self._sending[leased.live] += 1
        outs = deque(self._waits.add(parcel) for parcel in cut(leased))
        group.create_task(self._hand_over(group, sender, outs, live=leased.live))

    async def _hand_over(
        self, group: asyncio.TaskGroup, sender: Sender, outs: deque[Out], *, live: bool
    ) -> None:
        """One parcel after the other; divided, when it is too large."""
        try:
            while outs and not sender.is_over:
                out = outs.popleft()
                try:
                    payload = sender.encode(out.parcel)
                except TooLarge as error:
                    outs.extendleft(reversed(await self._divided(out, error)))
                    continue
                answers = await sender.send(out.parcel, payload)
                tell_sent(out.parcel, len(payload))
                group.create_task(self._watch(sender, out, answers))
        except LinkError:
            if not sender.is_over:
                raise
        finally:
            self._sending[live] -= 1
            self._outbox.more.set()

    async def _divided(self, out: Out, error: TooLarge) -> list[Out]:
        """Two parcels in place of one; a single record that is too large is given up."""
        self._waits.remove(out)
        parts = halves(out.parcel)
        if not parts:
            await self._suspects.bury(out.parcel, f"{error}; {error.hint}")
        return [self._waits.add(part) for part in parts]

    async def _watch(self, sender: Sender, out: Out, answers: Answers) -> None:
        """Wait for the broker's answers to a parcel."""
        try:
            await all_of(answers)
        except LinkError as error:
            if not sender.is_over:  # refused: a condition, and its time will run out
                await self._taken(out, str(error))
        else:
            await self._taken(out)

    async def _taken(self, out: Out, refused: str = "") -> None:
        """The broker has answered all of a parcel."""
        self._waits.taken(out, self._clock.monotonic(), refused)
        if self._settings.ack_from == "broker" and not refused:
            await self._hearing.acknowledge(out.parcel.name, 0, [out.parcel.span])

    async def _look_after(self) -> None:
        """Send again what nobody answers."""
        while True:
            self.rounds.came("late")
            await asyncio.sleep(min(LOOK_S, self._settings.ack_timeout_s / 4))
            late = self._waits.overdue(self._clock.monotonic())
            if late:
                await self._suspects.late(late)
                self._hearing.tell_missing()
