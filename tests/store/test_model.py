"""The whole store against a small model (model.py), by Hypothesis: any calls in any order, crashes
between and in them, reboots, a full disk; after each step the two must agree.

HOLDFAST_LONG=1 makes thousands of runs, HOLDFAST_SEED=N those of a failure that was printed. It is
printed as it came; HOLDFAST_SHRINK=1 makes it as small as it can be first, which takes minutes.
"""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent import config
from agent.config import StreamRule
from agent.records import Range, RecordType
from agent.store.intake import Durability, New
from agent.store.outbox import Batch
from tests.store.faults.child import LONG
from tests.store.faults.tripwire import POINTS
from tests.store.pair import Pair
from tests.store.steps import (
    RAW,
    SEGMENTS,
    Ack,
    Append,
    Begin,
    Bury,
    Hear,
    Keep,
    Refuse,
    Retry,
    Step,
)

SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
SHRINK = os.environ.get("HOLDFAST_SHRINK") == "1"
PARTS = 60 if LONG else 1
PROFILE = settings(
    max_examples=100 if LONG else 25,
    stateful_step_count=40,
    database=None,  # one way to replay, the seed: examples of a folder would not be everywhere
    derandomize=False,  # that would take the seed from the test's text: no other could be tried
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, *([Phase.shrink] if SHRINK else [])],
    print_blob=False,
)
RULES = [
    StreamRule(match="small", priority=3, bytes_max=5_000),
    StreamRule(match="thick", priority=3, thin_every=3),  # records of pages: it is thinned
    StreamRule(match="fine", thin_every=2, age_s_max=100),  # too small to be thinned
    StreamRule(match="mic.*", priority=7, age_s_max=300),
]
SIZES = {  # of a body and a blob, by stream
    "small": [(30, 0), (300, 0), (1500, 0), (300, 900)],
    "thick": [(30, 9_000), (300, 20_000), (30, 40_000), (1500, 9_000)],
    "fine": [(30, 0), (300, 0), (900, 0), (1500, 0)],
    "plain": [(30, 0), (1500, 0), (30, 5_000), (30, 70_000)],
}
STREAMS = [*SIZES, RAW, SEGMENTS]
WORKING = POINTS[POINTS.index("begin") :]

names = st.sampled_from(list(SIZES))
sizes = st.lists(st.integers(0, 3), min_size=1, max_size=12)
appends = st.tuples(names, sizes, st.sampled_from([Durability.SYNC, Durability.GROUP]))
spans = st.lists(st.tuples(st.integers(-9, 40), st.integers(0, 12)), max_size=4)


class Machine(RuleBasedStateMachine):
    """One store through all that may happen to it."""

    @initialize(
        when_full=st.sampled_from(["refuse", "evict", "evict"]),
        bytes_max=st.sampled_from([400_000, 800_000]),
    )
    def begin(self, when_full: Any, bytes_max: int) -> None:
        settings = config.Store(bytes_max=bytes_max, when_full=when_full, streams=RULES)
        self.pair = Pair(settings)
        self.count = 0  # no two records are alike
        self.batches: list[Batch] = []

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.rig.end()

    # What producers do.

    @rule(what=appends)
    def append(self, what: tuple[str, list[int], Durability]) -> None:
        self.pair.perform(self.appended(what))

    @rule(whats=st.lists(appends, min_size=2, max_size=5), sound=st.booleans())
    def append_at_once(self, whats: list[tuple[str, list[int], Durability]], sound: bool) -> None:
        self.pair.perform(*map(self.appended, whats), *(self.heard(8000) if sound else []))

    @rule(samples=st.sampled_from([0, 10, 4000, 32_768]), end=st.booleans())
    def hear(self, samples: int, end: bool) -> None:
        self.pair.perform(*self.heard(samples, end=end))

    @rule()
    def refuse_sound(self) -> None:
        self.pair.perform(Refuse())

    @rule(
        flacs=st.lists(st.sampled_from([10, 9_000, 70_000]), max_size=2),
        further=st.integers(0, 5),
        what=st.sampled_from(["segments", "all"]),
        buries=st.booleans(),
    )
    def keep(self, flacs: list[int], further: int, what: Keep, buries: bool) -> None:
        found = [self.pcm(size // 2) for size in flacs]
        self.pair.perform(Keep(self.pair.model, found, further, what, buries))

    # What the uplink does.

    @rule(
        records_max=st.sampled_from([1, 3, 50]),
        bytes_max=st.sampled_from([1, 300, 3000, 10**6]),
        live_s=st.sampled_from([0.0, 1.0, 30.0]),
    )
    def lease(self, records_max: int, bytes_max: int, live_s: float) -> None:
        if batch := self.pair.lease(records_max, bytes_max, live_s):
            self.batches = [*self.batches[-3:], batch]

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 3))
    def release(self, which: int) -> None:
        batch = self.batches[which % len(self.batches)]
        self.pair.release(batch.stream, batch.span)

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 3), let_go=st.booleans())
    def hold_back(self, which: int, let_go: bool) -> None:
        batch = self.batches[which % len(self.batches)]
        self.pair.hold_back(batch.stream, batch.span, let_go=let_go)

    @precondition(lambda self: self.batches)
    @rule(
        which=st.integers(0, 3),
        further=st.integers(0, 5),
        records_max=st.sampled_from([1, 50]),
        bytes_max=st.sampled_from([1, 3000, 10**6]),
    )
    def lease_span(self, which: int, further: int, records_max: int, bytes_max: int) -> None:
        """A part of one that was out, as a suspect."""
        before = self.batches[which % len(self.batches)]
        span = Range(min(before.span.first + further, before.span.last), before.span.last)
        if batch := self.pair.lease_span(before.stream, span, records_max, bytes_max):
            self.batches = [*self.batches[-3:], batch]

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 3), further=st.integers(0, 5), more=st.sampled_from([0, 0, 3, 50]))
    def bury(self, which: int, further: int, more: int) -> None:
        batch = self.batches[which % len(self.batches)]
        first = min(batch.span.first + further, batch.span.last)
        self.pair.perform(Bury(batch.stream, Range(first, min(first + more, batch.span.last))))

    @rule(stream=st.sampled_from(STREAMS))
    def retry(self, stream: str) -> None:
        if stream in self.pair.model.streams and self.pair.model.streams[stream].produced:
            self.pair.perform(Retry(stream))

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 3), cut=st.integers(0, 5), dead=st.sampled_from([0, 0, 1, 2]))
    def ack_batch(self, which: int, cut: int, dead: int) -> None:
        """One of the last, in any order, whole or in part, again, after a crash; perhaps some of
        it is dead at the far side, and (2) on its way."""
        batch = self.batches[which % len(self.batches)]
        first, last = batch.span.first, max(batch.span.first, batch.span.last - cut)
        there = [Range(first + (last - first) // 2, last)] if dead else []
        sending = [r.seq for r in batch.records if there and there[0].first <= r.seq <= last]
        self.pair.perform(
            Ack(batch.stream, [Range(first, last)], there, sending if dead == 2 else [])
        )

    @rule(stream=st.sampled_from(STREAMS), spans=spans)
    def ack_anything(self, stream: str, spans: list[tuple[int, int]]) -> None:
        """Ranges about the mark, also of what was never sent or never was."""
        self.pair.perform(self.acked(stream, spans))

    @rule(stream=st.sampled_from(STREAMS))
    def ack_another_epoch(self, stream: str) -> None:
        (answer,) = self.pair.rig.ask(
            self.pair.rig.store.outbox.acknowledge(("0" * 16, stream), [Range(1, 1 << 40)])
        )
        assert (answer.error, answer.result.delivered, answer.result.moved) == (None, 0, False)
        self.pair.compare()

    @rule(stream=st.sampled_from([None, *STREAMS]))
    def nack(self, stream: str | None) -> None:
        self.pair.rewind(stream)

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 50), start=st.integers(0, 80_000), size=st.integers(0, 80_000))
    def read_blob(self, which: int, start: int, size: int) -> None:
        records = [one for batch in self.batches for one in batch.records]
        if records:
            self.pair.check_blob(records[which % len(records)], start, size)

    @rule()
    def drain(self) -> None:
        """All that may be sent arrives."""
        self.pair.rewind(None)
        for name, stream in self.pair.model.streams.items():
            if stream.held_back:
                self.pair.hold_back(name, Range(1, stream.produced), let_go=True)
        while batch := self.pair.lease(50, 10**6):
            self.pair.perform(Ack(batch.stream, [batch.span]))
            if self.pair.disk_is_full:
                return
        for stream in self.pair.model.streams.values():
            assert all(s > stream.through or s in stream.unsent for s in stream.held)

    # What befalls the machine.

    @rule(
        after_s=st.sampled_from([0.5, 1.5, 12, 60, 150, 400]), wall_s=st.sampled_from([0, 1e9, 4e9])
    )
    def time_passes(self, after_s: float, wall_s: float) -> None:
        self.pair.rig.clock.at_s += after_s
        self.pair.rig.clock.wall_s = wall_s

    @rule()
    def reopen(self) -> None:
        self.pair.rig.close()
        self.pair.open_again(self.pair.rig.open)

    @rule()
    def crash(self) -> None:
        self.pair.open_again(self.pair.rig.crash)

    @rule(
        clean=st.booleans(),
        up_s=st.sampled_from([0.5, 5, 40, 200]),
        wall_s=st.sampled_from([0, 2e9]),
    )
    def reboot(self, clean: bool, up_s: float, wall_s: float) -> None:
        ended_s, clock = self.pair.rig.clock.at_s, self.pair.rig.clock
        if clean:
            self.pair.rig.close()
        clock.boot, clock.at_s, clock.wall_s = f"{clock.boot}'", up_s, wall_s
        self.pair.open_again(self.pair.rig.open if clean else self.pair.rig.crash, ended_s)

    @rule(
        point=st.sampled_from(WORKING),
        times=st.integers(1, 30),
        whats=st.lists(appends, max_size=2, unique_by=lambda what: what[0]),
        other=st.sampled_from([None, "hear", "keep", "refuse", "ack", "bury"]),
        spans=spans,
    )
    def crash_in(
        self, point: str, times: int, whats: list[Any], other: str | None, spans: list[Any]
    ) -> None:
        """Of what nobody heard an answer to, each call is wholly there or not at all."""
        steps: list[Step] = [self.appended(what) for what in whats]
        match other:
            case "hear":
                steps += self.heard(4000, end=True)
            case "keep":
                steps.append(Keep(self.pair.model, [self.pcm(9000)], 3, "segments", buries=True))
            case "refuse":
                steps.append(Refuse())
            case "ack":
                steps.append(self.acked(SEGMENTS, spans))
            case "bury" if self.batches:
                steps.append(Bury(self.batches[-1].stream, self.batches[-1].span))
        if steps:
            self.pair.cut_off(point, times if point == "statement" else 1 + times % 3, steps)

    @rule(pages=st.integers(0, 40))
    def disk_fills(self, pages: int) -> None:
        self.pair.allow_pages(pages)

    @precondition(lambda self: self.pair.disk_is_full)
    @rule()
    def disk_is_freed(self) -> None:
        self.pair.allow_pages(None)

    # How a step is made and judged.

    def appended(self, what: tuple[str, list[int], Durability]) -> Append:
        stream, chosen, durability = what
        records = []
        for one in chosen:
            body_bytes, blob_bytes = SIZES[stream][one]
            self.count += 1
            body = b'{"n":%d,"x":"' % self.count
            blob = self.pcm(blob_bytes // 2)
            records.append(New(RecordType.SEGMENT, body + b"x" * (body_bytes - 15) + b'"}', blob))
        return Append(stream, records, durability)

    def acked(self, stream: str, spans: list[tuple[int, int]]) -> Ack:
        mark = self.pair.model.stream(stream).settled if stream in self.pair.model.streams else 0
        firsts = [(max(1, mark + first), more) for first, more in spans]
        return Ack(stream, [Range(first, first + more) for first, more in firsts])

    def heard(self, samples: int, *, end: bool = False) -> list[Step]:
        """Nothing, if not even the take can be begun."""
        begin = Begin(self.pair.model)
        self.pair.perform(begin)
        return [Hear(begin.take, self.pcm(samples), end=end)] if begin.take else []

    def pcm(self, samples: int) -> bytes:
        self.count += 1
        return (self.count.to_bytes(4, "big") * (samples // 2 + 1))[: 2 * samples]


@pytest.mark.parametrize("part", range(PARTS))
def test_the_store_does_what_its_model_does(part: int) -> None:
    try:
        run_state_machine_as_test(seed(f"{SEED}.{part}")(Machine), settings=PROFILE)
    except BaseException as error:
        long = "HOLDFAST_LONG=1 " if LONG else ""
        test = f"tests/store/test_model.py::test_the_store_does_what_its_model_does[{part}]"
        error.add_note(
            f"again, and smaller: {long}HOLDFAST_SEED={SEED} HOLDFAST_SHRINK=1"
            f" pytest -o faulthandler_timeout=0 '{test}'"
        )
        raise
