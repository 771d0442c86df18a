"""The store as it ought to be: dicts, sets, and its rules in a form that can be read.

It knows what each call changes. What gives way meanwhile it cannot know to the record, since it has
no pages: `Model.explain` takes what the store gave up and finds a reason for each, or says so.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import msgspec

from agent import config
from agent.records import Balance, Position, Range, Stamp, raw_stream
from agent.store.age import SEEN_S
from agent.store.bounds import DEFAULT, EVICTED, EXPIRE_S, EXPIRED, PAGE_BYTES
from agent.store.outbox import DROP_BYTES, EVENT_BYTES, Batch, Settled

SOURCE = "mic"
GIVE_UP_MAX = 20  # in place of the store's own, so that it is reached
SLACK_PAGES = 24  # what a few changes may take beside their own bytes


class Kept(msgspec.Struct, frozen=True):
    """A record that was accepted."""

    stamp: Stamp
    body: bytes
    blob: bytes

    @property
    def bytes(self) -> int:
        return len(self.body) + len(self.blob)


class Stream:
    """One stream: each seq up to `produced` is held, delivered or dropped."""

    def __init__(self, rule: config.StreamRule, sendable: int | None) -> None:
        self.rule = rule
        self.sendable = sendable  # None: all of it
        self.produced = 0
        self.settled = 0
        self.out: set[int] = set()
        self.letters: set[int] = set()  # those that were dead letters when they went out
        self.known: set[int] = set()  # above the mark, as acks have said
        self.thinned = 0
        self.held_back: set[int] = set()
        self.unsent: set[int] = set()  # dead letters of the link
        self.again: set[int] = set()  # those of them that are sent again
        self.held: dict[int, Kept] = {}
        self.delivered: set[int] = set()
        self.dropped: dict[int, str] = {}

    @property
    def through(self) -> int:
        return self.produced if self.sendable is None else self.sendable

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self.held.values())

    @property
    def waiting(self) -> list[int]:
        """What may be sent."""
        buried = self.unsent - self.again
        return sorted(seq for seq in self.held if seq <= self.through and seq not in buried)

    @property
    def free(self) -> list[int]:
        """What may be leased."""
        return [seq for seq in self.not_out if seq not in self.held_back]

    @property
    def not_out(self) -> list[int]:
        """What may be leased by its span."""
        known = set(range(1, self.settled + 1)) | self.known
        taken = (known - self.again) | self.out
        return [seq for seq in self.waiting if seq not in taken]

    @property
    def loose(self) -> list[int]:
        """What is held and not leased, the oldest first."""
        return sorted(seq for seq in self.held if seq not in self.out)

    @property
    def balance(self) -> Balance:
        reasons = list(self.dropped.values())
        counts = {reason: reasons.count(reason) for reason in set(reasons)}
        return Balance(self.produced, len(self.delivered), len(self.held), counts)

    def append(self, kept: Iterable[Kept]) -> Range:
        first = self.produced + 1
        for one in kept:
            self.produced += 1
            self.held[self.produced] = one
        return Range(first, self.produced)

    def drop(self, seq: int, reason: str) -> Kept:
        self.dropped[seq] = reason
        self.unsent.discard(seq)
        self.again.discard(seq)
        return self.held.pop(seq)

    def victims(self) -> list[tuple[int, bool]]:
        """Seqs in the order in which they give way, and whether it is by thinning."""
        every, loose = self.rule.thin_every, self.loose
        if not every or self.bytes < PAGE_BYTES * len(self.held):
            return [(seq, False) for seq in loose]
        thin = [seq for seq in loose if seq > self.thinned and seq % every == 0]
        return [(s, True) for s in thin] + [(s, False) for s in loose if s not in thin]

    def evict(self, seq: int, by_thinning: bool) -> Kept:
        if by_thinning:
            self.thinned = seq
        return self.drop(seq, EVICTED)

    def acknowledge(
        self, spans: Iterable[Range], dead: set[int], sending: set[int], *, leased: bool = True
    ) -> Settled:
        """Held records of `spans` are delivered; the mark passes what is known to the far side.

        What is `dead` there is not; `sending` of these stay out, and so do dead letters elsewhere.
        """
        before, stay = self.settled, sending & self.out
        said = {seq for span in spans for seq in range(span.first, span.last + 1)}
        stay |= (self.letters & self.out) - said
        found = {seq for seq in dead & self.held.keys() - self.unsent if seq > before}
        self.unsent |= found
        self.again |= found
        named = {s for span in spans for s in range(span.first, min(span.last, self.produced) + 1)}
        known = {seq for seq in named | self.known if seq <= self.through}
        gone = {seq for seq in named if seq <= self.through} & self.held.keys()
        gone -= self.unsent - (self.again & self.out - dead)
        self.unsent -= gone
        self.again -= gone
        for seq in gone:
            del self.held[seq]
        self.delivered |= gone
        while self.settled < self.through and self.settled + 1 in known | self.delivered:
            self.settled += 1
        if leased:
            self.known = {seq for seq in known if seq > self.settled}
        self.out -= known | set(range(1, self.settled + 1))
        self.out |= stay
        self.letters &= stay
        return Settled(len(gone), self.settled, moved=self.settled > before)


class Model:
    """All streams, and who is out."""

    def __init__(self, settings: config.Store) -> None:
        self.settings = settings
        self.evict_bytes = settings.evict_at * settings.bytes_max
        self.streams: dict[str, Stream] = {}
        self.turns: list[str] = []  # who was leased, the longest ago first
        self.leases = 0
        self.dead: dict[int, str] = {}
        self.takes = [0]  # how many samples of each are accepted; the last one goes on
        self.position = Position()
        self.ages = Ages()

    def stream(self, name: str) -> Stream:
        """The stream, begun if it is new; raw audio is not the uplink's before it was heard."""
        if name not in self.streams:
            rules = (r for r in self.settings.streams if fnmatchcase(name, r.match))
            self.streams[name] = Stream(
                next(rules, DEFAULT), 0 if name == raw_stream(SOURCE) else None
            )
        return self.streams[name]

    def begin_anew(self) -> None:
        """The process ended: leases are no more, and nobody knows whose turn it is."""
        self.rewind()
        self.turns, self.leases = [], 0
        for stream in self.streams.values():
            stream.held_back = set()

    def rewind(self, name: str | None = None) -> None:
        """Nothing of it is out any more."""
        for one in [name] if name else list(self.streams):
            if one in self.streams:
                self.streams[one].out, self.streams[one].known = set(), set()

    def lease(
        self, batch: Batch | None, records_max: int, bytes_max: int, fresh_ns: int, boot: str
    ) -> None:
        """The outbox gave this; it must be what was next. Live is what is of `boot`, since then."""
        free = {name: one.free for name, one in self.streams.items() if one.free}
        if batch is None:
            assert not free, f"nothing was leased, though {free} wait"
            return
        self._in_turn(batch, free, fresh_ns, boot)
        self._leased(batch, self.streams[batch.stream].free, records_max, bytes_max)

    def lease_span(
        self, name: str, span: Range, batch: Batch | None, records_max: int, bytes_max: int
    ) -> None:
        """The outbox gave this of a span."""
        free = self.streams[name].not_out
        if batch is None:
            assert not [seq for seq in free if span.first <= seq <= span.last]
            return
        assert span.first <= batch.span.first <= batch.span.last <= span.last
        assert batch.stream == name
        self._leased(batch, free, records_max, bytes_max)

    def _leased(self, batch: Batch, free: list[int], records_max: int, bytes_max: int) -> None:
        self._is_whole(batch, free, records_max, bytes_max)
        self.leases += 1
        of = self.streams[batch.stream]
        of.letters = of.letters & of.out | {one.seq for one in batch.records} & of.again
        of.out |= set(range(batch.span.first, batch.span.last + 1))
        self.turns = [*(name for name in self.turns if name != batch.stream), batch.stream]

    def _in_turn(self, batch: Batch, free: dict[str, list[int]], fresh_ns: int, boot: str) -> None:
        """Live before the rest, priority, who waited longest; each eighth that one alone."""
        turns = {name: i for i, name in enumerate(self.turns)}
        live = {}
        for name, seqs in free.items():
            made = {seq: self.streams[name].held[seq].stamp for seq in seqs}
            young = [s for s in seqs if made[s].boot == boot and made[s].mono_ns >= fresh_ns]
            if young:
                live[name] = young
        first = batch.records[0].seq if batch.records else 0
        span = set(range(batch.span.first, batch.span.last + 1))
        assert not span & self.streams[batch.stream].held_back
        if self.leases % 8 == 7:
            rank = {name: (0, turns.get(name, -1)) for name in free}
        else:
            chosen = live or free
            rank = {
                name: (-self.streams[name].rule.priority, turns.get(name, -1)) for name in chosen
            }
            assert not live or batch.live, f"{live} are live"
            assert not live or not first or first == live[batch.stream][0]
        if batch.stream in rank:
            assert rank[batch.stream] == min(rank.values()), "out of turn"
        else:
            assert not batch.records, "others came first"
        if batch.records and not batch.live:
            assert first == free[batch.stream][0], "the oldest comes first"

    def _is_whole(self, batch: Batch, free: list[int], records_max: int, bytes_max: int) -> None:
        """What it says of each seq in its span is so."""
        stream, span = self.streams[batch.stream], batch.span
        inside = set(range(span.first, span.last + 1))
        assert not inside & stream.out
        due = [seq for seq in free if seq in inside]
        assert [one.seq for one in batch.records] == due
        for one in batch.records:
            kept = stream.held[one.seq]
            assert (one.stamp, one.body, one.blob_bytes) == (
                *(kept.stamp, kept.body),
                len(kept.blob),
            )
        told = {s: d.reason for d in batch.drops for s in range(d.first, d.last + 1)}
        assert told.keys() <= inside
        expected = {s: why for s, why in stream.dropped.items() if s in inside}
        expected |= {s: "dead" for s in stream.unsent - stream.again if s in inside}
        new = {s: why for s, why in expected.items() if s > stream.settled}
        assert new.items() <= told.items() <= expected.items()
        settled = set(range(1, stream.settled + 1))
        assert inside <= {*due, *told} | stream.delivered | settled, "a seq is missing"
        assert len(due) <= records_max
        size = sum(len(one.body) + EVENT_BYTES for one in batch.records)
        size += DROP_BYTES * len(batch.drops)
        assert len(due) <= 1 or size <= bytes_max

    def may_refuse(self, new_bytes: int, new_count: int, used_bytes: int, names: set[str]) -> bool:
        """Whether a bound is a reason to refuse this much in these streams."""
        refuses = self.settings.when_full == "refuse"
        loose = [seq for one in self.streams.values() for seq in one.loose]
        out = any(one.out for one in self.streams.values())
        stuck = refuses or out or len(loose) + new_count > GIVE_UP_MAX
        of_stream = any(
            one.rule.bytes_max is not None and one.bytes + new_bytes > one.rule.bytes_max
            for one in map(self.stream, names)
        )
        in_all = used_bytes + footprint(new_bytes, new_count) > self.settings.bytes_max
        return stuck and (of_stream or in_all)

    def explain(
        self,
        held: dict[str, set[int]],
        ledger: dict[str, Balance],
        now: Stamp,
        *,
        together: bool = False,
        crashed: bool = False,
    ) -> tuple[list[Kept], int]:
        """Find a reason for each record that is not held any more, by the ledger's counts.

        Returns what was evicted for the bound in all, and how many expired.
        """
        evicted, expired = {}, 0
        for name, stream in self.streams.items():
            there = held.get(name, set())
            assert there <= stream.held.keys(), f"{name}: {there - stream.held.keys()} came back"
            gone = stream.held.keys() - there
            counts = ledger[name].dropped if name in ledger else {}
            old = counts.get(EXPIRED, 0) - stream.balance.dropped.get(EXPIRED, 0)
            # At an open nothing is leased, so then the oldest of all may expire.
            order = sorted(gone & stream.held.keys()) if crashed else stream.loose
            for seq in order[:old]:
                assert seq in gone, f"{name}: {seq} was the next to expire"
                age_s = self.ages.span_s(stream.held[seq].stamp, now)[1]
                limit_s = stream.rule.age_s_max
                assert limit_s is not None, f"{name}: nothing of it expires"
                assert age_s > limit_s, f"{name}: {seq} is {age_s} s old"
                stream.drop(seq, EXPIRED)
                expired += 1
            evicted[name] = gone & stream.held.keys()
        if any(evicted.values()):
            assert self.settings.when_full == "evict", f"lost: {evicted}"
        self._fit_streams(evicted)
        return self._fit_all(evicted, together=together, crashed=crashed), expired

    def _fit_streams(self, evicted: dict[str, set[int]]) -> None:
        """Exactly what makes each stream fit its own bound."""
        for name, stream in self.streams.items():
            bytes_max = stream.rule.bytes_max or stream.bytes
            for seq, by_thinning in stream.victims():
                if stream.bytes <= bytes_max:
                    break
                assert seq in evicted[name], f"{name}: {seq} should have made room"
                stream.evict(seq, by_thinning)
                evicted[name].remove(seq)
            assert stream.bytes <= bytes_max, f"{name} is above its bound"

    def _fit_all(
        self, evicted: dict[str, set[int]], *, together: bool, crashed: bool
    ) -> list[Kept]:
        """As many passes over the streams as it takes, each in the order of their value then.

        `together`: several commits, with new records in between, so any stream may be the next.
        `crashed`: from some pass on nothing is leased any more.
        """
        found: list[Kept] = []
        while any(evicted.values()):
            before = len(found)
            for name, stream in sorted(
                self.streams.items(),
                key=lambda one: (one[1].rule.priority, -one[1].bytes, not evicted[one[0]]),
            ):
                for seq, by_thinning in stream.victims():
                    if seq not in evicted[name]:
                        if together and by_thinning:  # it came after the oldest had gone
                            continue
                        break
                    found.append(stream.evict(seq, by_thinning))
                    evicted[name].remove(seq)
                if stream.loose and not together:
                    break
            if len(found) == before:
                leased = any(stream.out for stream in self.streams.values())
                assert crashed and leased, f"given up before its turn, or while leased: {evicted}"
                self.rewind()
        return found

    def overdue(self, now: Stamp) -> list[tuple[str, int]]:
        """What must have expired by now: in each stream, up to the first that need not."""
        found = []
        for name, stream in self.streams.items():
            for seq in stream.loose:
                age_s = self.ages.span_s(stream.held[seq].stamp, now)[0]
                if stream.rule.age_s_max is None or age_s <= stream.rule.age_s_max:
                    break
                found.append((name, seq))
        return found


class Ages:
    """The running time of the machine, between what the store must have seen of it and all."""

    def __init__(self) -> None:
        self._bases: dict[str, tuple[float, float]] = {}
        self._boot = ""
        self._seen_s = self._noted_s = 0.0
        self._looked_s = 0.0

    def open(self, now: Stamp, ended_s: float) -> None:
        """A store is opened; `ended_s` is how far the boot before this one had come."""
        if now.boot not in self._bases:
            low, high = self._bases.get(self._boot, (0.0, 0.0))
            self._bases[now.boot] = (low + self._seen_s, high + ended_s)
            self._boot, self._seen_s = now.boot, 0.0
        self._noted_s = self._looked_s = 0.0
        self.wrote(now, committed=False)  # an open ends with a commit

    def wrote(self, now: Stamp, *, committed: bool) -> bool:
        """It wrote, and perhaps not all went well; whether it surely looked for what is too old."""
        now_s = now.mono_ns / 1e9
        if now_s - self._noted_s >= SEEN_S:
            self._noted_s = now_s
            if committed:
                self._seen_s = now_s
        looks = now_s - self._looked_s >= EXPIRE_S
        if looks:
            self._looked_s = now_s
        return looks and committed

    def span_s(self, made: Stamp, now: Stamp) -> tuple[float, float]:
        """How old a record is for the store, at least and at most."""
        low, high = (
            there - then
            for there, then in zip(self._bases[now.boot], self._bases[made.boot], strict=True)
        )
        ran_s = (now.mono_ns - made.mono_ns) / 1e9
        return low + ran_s, high + ran_s


def footprint(new_bytes: int, count: int) -> int:
    """Bytes of the pages that so many new records may take, generously."""
    return int(1.2 * new_bytes) + PAGE_BYTES * (3 * count + SLACK_PAGES)
