"""What the far side says it has: taken down in the store, and told to whoever waits for it."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence

from agent.clock import Clock
from agent.config import Link as Settings
from agent.errors import ProtocolError
from agent.health.conditions import Conditions
from agent.protocol import ack
from agent.records import SEQ_MAX, Range
from agent.store.outbox import Name, Outbox
from agent.store.settling import AnotherLife
from agent.sync.budget.progress import Progress
from agent.sync.up.sending import Parts
from agent.sync.up.suspects import Suspects
from agent.sync.up.waits import Waits

log = logging.getLogger("link")
ALL = Range(1, SEQ_MAX)
WORDS_MAX, WORDS_BYTES_MAX = 64, 4 * ack.BYTES_MAX  # acks that wait to be taken
DOTTED = (
    "; if the broker is RabbitMQ, set a device_id without dots: it makes slashes of them, and the "
    "ingest does not get what is published there"
)


class Hearing:
    """Acks of the ingest, and of the broker where that one counts."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        outbox: Outbox,
        conditions: Conditions,
        clock: Clock,
        progress: Progress,
        waits: Waits,
        suspects: Suspects,
        parts: Parts,
    ) -> None:
        """`parts` learns how far blobs are there."""
        self.begun = asyncio.Event()  # the first ack was taken, or has been waited for
        self._settings = settings
        self._outbox = outbox
        self._conditions = conditions
        self._clock = clock
        self._progress = progress
        self._waits = waits
        self._suspects = suspects
        self._parts = parts
        self._dotted = DOTTED if "." in device else ""
        self._words: deque[tuple[ack.Ack, int]] = deque(maxlen=WORDS_MAX)  # and their bytes
        self._told = asyncio.Event()
        # Streams that live twice: sent, they would fill the line for nothing, again and again.
        self._strange: set[Name] = set()

    def heard(self, payload: bytes) -> None:
        """An ack came; each is taken, in the order they came, since of several ingests one may be
        slow to send what it read: the last is not always the newest."""
        try:
            word = ack.decode(payload)
        except ProtocolError as error:
            self._refuse(error)
            return
        self._words.append((word, len(payload)))
        while sum(size for _, size in self._words) > WORDS_BYTES_MAX:  # the oldest comes again
            self._words.popleft()
        self._told.set()

    async def run(self) -> None:
        """Take what came: with `ack_from: ingest` what the far database holds is purged."""
        while True:
            await self._told.wait()
            self._told.clear()
            while self._words:
                await self._taken(self._words.popleft()[0])

    async def _taken(self, word: ack.Ack) -> None:
        streams = {
            (epoch, stream): of
            for epoch, streams in word.epochs.items()
            for stream, of in streams.items()
        }
        growing = self._parts.learn(
            {(name, seq): size for name, of in streams.items() for seq, size in of.parts.items()}
        )
        for name in growing:
            self._waits.goes_on(name, self._clock.monotonic())
        if self._settings.ack_from == "ingest":
            await self._take(streams)
        self.begun.set()
        self._outbox.more.set()

    async def _take(self, streams: dict[Name, ack.StreamAck]) -> None:
        wrong: ProtocolError | None = None
        for name, of in streams.items():
            try:
                if name not in self._strange:
                    await self._suspects.refused(name, of.refused)
                await self.acknowledge(
                    *(name, of.mark, of.ranges, of.refused, of.dead),
                    tail=of.tail,
                    listed=of.listed,
                )
            except AnotherLife as error:
                wrong = error
                self._strange.add(name)
                self._outbox.hold_back(name, ALL)
            except ProtocolError as error:
                wrong = error
            else:
                self._familiar(name)
        if wrong:
            self._refuse(wrong)
        else:
            self._conditions.clear("ack_refused", "link")

    def _familiar(self, name: Name) -> None:
        """The far side's word of a stream was right: it may be sent again, if it was not."""
        if name in self._strange:
            self._strange.discard(name)
            self._outbox.let_go(name, ALL)

    def _refuse(self, error: ProtocolError) -> None:
        self._conditions.hold("ack_refused", "link", "warning", str(error), error.hint)

    async def acknowledge(
        self,
        name: Name,
        mark: int,
        ranges: list[Range],
        refused: Iterable[Range] = (),
        dead: Iterable[Range] = (),
        *,
        tail: tuple[int, int] | None = None,
        listed: Sequence[Range] = (),
    ) -> None:
        """The far side has all up to `mark`, and `ranges`, but for the `dead`; it will not have
        what it `refused`. It spoke of the seqs `listed` alone, if there are any; `tail` is as the
        outbox says."""
        dead = sorted(dead, key=lambda one: one.first)

        def sending() -> set[int]:
            """Dead letters that are sent again; more of them may be once the ack is written."""
            return self._waits.sending(name, dead)

        known = [*([Range(1, mark)] if mark else []), *ranges]
        settled = await self._outbox.acknowledge(
            name, known, dead, sending, tail=tail, sure=name in self._strange
        )
        now, mark = self._clock.monotonic(), max(mark, settled.mark)
        answered = self._waits.settle(
            *(name, mark, [*ranges, *refused], now),
            moved=settled.moved,
            sending=sending() | self._outbox.again(name),
            listed=listed,
        )
        self._suspects.through(name, known, dead, answered)
        if answered or settled.moved:
            self._outbox.more.set()  # there is room again
            self.tell_missing()
        if settled.delivered:
            self._progress.acknowledged(settled.delivered, sum(out.size_bytes for out in answered))
            word = "%s: %d acknowledged by the %s"
            log.info(word, name[1], settled.delivered, self._settings.ack_from)

    def tell_missing(self) -> None:
        """Of the streams that wait for an ack too long, as a condition."""
        missed = self._waits.missed()
        if not missed:
            self._conditions.clear("ack_missing", "link")
            return
        self._conditions.hold(
            "ack_missing",
            "link",
            "warning",
            f"no ack from the {self._settings.ack_from} for {', '.join(sorted(missed))} in "
            f"{min(missed.values()):.0f} s",
            "check that the ingest runs and sends acks, or see link.ack_from" + self._dotted,
        )
