"""What is asked of the store, and what the model makes of it.

Each step knows how to `ask` the store, and what it `did` once it is committed: told of the answer
it holds it against the model; without one (the caller died) it changes the model alone.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.forms import Keep as What
from agent.records import Position, Range, Raw, Segment, Stamp, Take
from agent.records import raw_stream as raw_of
from agent.records import segments_stream as segments_of
from agent.store.decisions import Retried
from agent.store.intake import Durability, New, Receipt
from agent.store.outbox import Settled
from agent.store.spool import FULL, PROCESSED
from agent.store.store import Store
from tests.store.model import SOURCE, Kept, Model

RAW, SEGMENTS = raw_of(SOURCE), segments_of(SOURCE)


class Step:
    """The base of all."""

    stream = RAW
    producing = False  # may be refused at a bound
    new: Sequence[int] = ()  # sizes of what it brings, in bytes

    async def ask(self, store: Store) -> Any:
        raise NotImplementedError

    def did(self, model: Model, stamp: Stamp, answer: Any) -> None:
        raise NotImplementedError

    def leased_till_then(self, stream: str, seq: int) -> bool:
        """Whether the lease of this seq ended when the step was done, and not before its commit."""
        return False


class Append(Step):
    """Records into any stream."""

    producing = True

    def __init__(self, stream: str, records: Sequence[New], durability: Durability) -> None:
        self.stream = stream
        self.new = [len(one.body) + len(one.blob) for one in records]
        self._records = records
        self._durability = durability

    async def ask(self, store: Store) -> Receipt:
        return await store.intake.append(self.stream, self._records, self._durability)

    def did(self, model: Model, stamp: Stamp, answer: Receipt | None) -> None:
        kept = [Kept(stamp, one.body, one.blob) for one in self._records]
        span = model.stream(self.stream).append(kept)
        if answer:
            assert Range(answer.first, answer.last) == span
            assert answer.durability is self._durability


class Begin(Step):
    """The take that goes on, asked for each time, as after a crash."""

    def __init__(self, model: Model) -> None:
        self._name = f"{len(model.takes)}.wav"
        self.take: Take | None = None

    async def ask(self, store: Store) -> Take:
        return await store.spool.begin(SOURCE, self._name, "it")

    def did(self, model: Model, stamp: Stamp, answer: Take) -> None:
        assert answer == Take(answer.id, SOURCE, self._name, model.takes[-1])
        self.take = answer


class Hear(Step):
    """The next stretch of a take."""

    def __init__(self, take: Take, pcm: bytes, *, end: bool) -> None:
        self.producing = bool(pcm)
        self.new = [len(pcm) + 100]
        self._take = take
        self._pcm = pcm
        self._end = end

    async def ask(self, store: Store) -> Take:
        return await store.spool.accept(self._take, self._pcm, end=self._end)

    def did(self, model: Model, stamp: Stamp, answer: Take | None) -> None:
        take, samples = self._take, len(self._pcm) // 2
        raw = Raw(take.id, take.name, take.samples, samples, self._end)
        model.stream(RAW).append([Kept(stamp, msgspec.json.encode(raw), self._pcm)])
        model.takes[-1] += samples
        if answer:
            assert answer.durability == "group"
            bare = msgspec.structs.replace(answer, durability="", commit_s=0.0)
            assert bare == Take(take.id, SOURCE, take.name, model.takes[-1], self._end)
        if self._end:
            model.takes.append(0)


class Refuse(Step):
    """A stretch of live sound that could not be kept."""

    async def ask(self, store: Store) -> None:
        await store.spool.refuse(SOURCE, FULL)

    def did(self, model: Model, stamp: Stamp, answer: None) -> None:
        stream = model.stream(RAW)
        stream.produced += 1
        stream.dropped[stream.produced] = FULL


class Keep(Step):
    """Segments, and how far the raw audio is done; perhaps one of it is a dead letter."""

    def __init__(
        self, model: Model, flacs: Sequence[bytes], further: int, what: What, buries: bool
    ) -> None:
        raw = model.stream(RAW)
        next_seq = min(model.position.next_seq + further, raw.produced + 1)
        done = [seq for seq in raw.held if model.position.next_seq <= seq < next_seq]
        self._dead = (done[-1], "nobody can digest it") if buries and done else None
        self._position = Position(len(model.takes), 1, next_seq=next_seq)
        self._what = what
        self._found = [
            Segment(
                *(f"{next_seq}/{i}", SOURCE, 1, "a.wav", i, 10, 0.9, 0, "m", "CPU"),
                hashlib.sha256(flac).hexdigest(),
                len(flac),
            )
            for i, flac in enumerate(flacs)
        ]
        self._flacs = flacs
        self.new = [400 + len(flac) for flac in flacs]

    async def ask(self, store: Store) -> list[int]:
        found = list(zip(self._found, self._flacs, strict=True))
        return await store.spool.keep(SOURCE, found, self._position, self._what, self._dead)

    def did(self, model: Model, stamp: Stamp, answer: list[int] | None) -> None:
        span = model.stream(SEGMENTS).append(
            Kept(stamp, msgspec.json.encode(body), flac)
            for body, flac in zip(self._found, self._flacs, strict=True)
        )
        if answer is not None:
            assert answer == list(range(span.first, span.last + 1))
        model.position = self._position
        if self._dead:
            model.dead.update([self._dead])
        stream, next_seq = model.stream(RAW), self._position.next_seq
        if self._what == "all":
            stream.sendable = next_seq - 1
            return
        for seq in [s for s in stream.held if stream.through < s < next_seq]:
            if seq not in model.dead:
                stream.drop(seq, PROCESSED)


class Bury(Step):
    """The link gives records up."""

    def __init__(self, stream: str, span: Range) -> None:
        self.stream = stream
        self._span = span

    def leased_till_then(self, stream: str, seq: int) -> bool:
        return stream == self.stream and self._span.first <= seq <= self._span.last

    async def ask(self, store: Store) -> int:
        name = (store.epoch, self.stream)
        if self._span.first == self._span.last:
            return await store.outbox.bury(name, self._span.first, "never stored")
        return await store.outbox.bury_span(name, self._span, "never stored")

    def did(self, model: Model, stamp: Stamp, answer: int | None) -> None:
        stream = model.stream(self.stream)
        inside = set(range(self._span.first, self._span.last + 1))
        held = inside & stream.held.keys()
        assert answer in (None, len(held))
        stream.out -= inside
        stream.held_back -= inside
        stream.unsent |= held
        stream.again -= held
        if self.stream == RAW:  # the link's now
            model.dead = {seq: cause for seq, cause in model.dead.items() if seq not in held}


class Retry(Step):
    """Somebody wants the link's dead letters of a stream sent again."""

    def __init__(self, stream: str) -> None:
        self.stream = stream

    async def ask(self, store: Store) -> Retried:
        return await store.decisions.retry((store.epoch, self.stream))

    def did(self, model: Model, stamp: Stamp, answer: Retried | None) -> None:
        stream = model.stream(self.stream)
        assert answer is None or answer.sending == len(stream.unsent)
        stream.again = set(stream.unsent)


class Ack(Step):
    """What the far side says it has, in any order, again, and of more than was ever sent."""

    def __init__(
        self,
        stream: str,
        spans: Sequence[Range],
        dead: Sequence[Range] = (),
        sending: Sequence[int] = (),
    ) -> None:
        """`dead` of these are, at the far side; `sending` of them are on their way."""
        self.stream = stream
        self._spans = spans
        self._dead = dead
        self._sending = sending

    async def ask(self, store: Store) -> Settled:
        name = (store.epoch, self.stream)
        return await store.outbox.acknowledge(name, self._spans, self._dead, lambda: self._sending)

    def makes_sense(self, model: Model) -> bool:
        """Whether all that it names was produced."""
        stream = model.streams.get(self.stream)
        produced = stream.produced if stream else 0
        return all(span.last <= produced for span in self._spans)

    def did(self, model: Model, stamp: Stamp, answer: Settled | None) -> None:
        dead = {seq for span in self._dead for seq in range(span.first, span.last + 1)}
        settled = model.stream(self.stream).acknowledge(
            *(self._spans, dead, set(self._sending)), leased=self.stream in model.turns
        )
        if answer:
            assert answer == settled
