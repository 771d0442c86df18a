"""The ranges of one stream against a model of plain sets."""

import sys
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleet.store.coverage import Coverage, minus, runs

SEQ = st.integers(1, 30)
STEP = st.tuples(st.sampled_from(["store", "full", "dead", "operator"]), SEQ, SEQ)


def flat(ranges: list[tuple[int, int]]) -> set[int]:
    return {seq for first, last in ranges for seq in range(first, last + 1)}


@given(st.lists(STEP, max_size=25))
def test_it_knows_what_is_stored_and_what_is_told(steps: list[tuple[str, int, int]]) -> None:
    coverage = Coverage(0)
    stored: set[int] = set()
    told: dict[int, str] = {}
    for now_us, (word, one, other) in enumerate(steps):
        first, last = min(one, other), max(one, other)
        seqs = set(range(first, last + 1))
        if word == "store":
            coverage.store(first, last, now_us)
            stored |= seqs
        else:
            coverage.tell(first, last, word, now_us)
            told |= {s: word for s in seqs if word != "dead" or told.get(s, "dead") == "dead"}
        there = stored | set(told)
        assert flat(coverage.covered(1, 30)) == there
        assert flat(coverage.stored(1, 30)) == stored
        assert flat([(t.first, t.last) for t in coverage.told]) == set(told) - stored
        told = {seq: reason for seq, reason in told.items() if seq not in stored}
        for each in coverage.told:
            assert all(told[seq] == each.reason for seq in range(each.first, each.last + 1))
        mark = next(seq for seq in range(32) if seq + 1 not in there)
        above = [(a, b) for a, b in runs(sorted(there)) if a > mark]
        assert coverage.mark == mark
        assert [(span.first, span.last) for span in coverage.spans] == above


def test_a_gap_is_known_since_what_lies_above_it_came() -> None:
    coverage = Coverage(0)
    coverage.store(10, 12, 100)
    coverage.store(20, 21, 200)
    coverage.store(13, 15, 300)
    coverage.store(18, 19, 400)
    assert [(s.first, s.last, s.since_us) for s in coverage.spans] == [(10, 15, 100), (18, 21, 400)]
    coverage.store(16, 17, 500)
    assert [(s.first, s.last, s.since_us) for s in coverage.spans] == [(10, 21, 100)]


@given(st.lists(st.tuples(SEQ, SEQ)), st.lists(st.tuples(SEQ, SEQ)))
def test_minus(ranges: list[tuple[int, int]], holes: list[tuple[int, int]]) -> None:
    of = [(min(r), max(r)) for r in ranges]
    without = [(min(r), max(r)) for r in holes]
    assert flat(minus(of, without)) == flat(of) - flat(without)


def steps_of(count: int) -> int:
    """Of the interpreter, to take in every other seq as a record, and the rest as told, twice."""
    steps = 0

    def tracer(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        coverage = Coverage(0)
        for _ in range(2):
            coverage.stored(1, 2 * count)
            for seq in range(2, 2 * count, 2):
                coverage.store(seq, seq, 1)
            for seq in range(1, 2 * count, 2):
                coverage.tell(seq, seq, "full", 1)
    finally:
        sys.settrace(before)
    assert coverage.mark == 2 * count - 1
    return steps


def test_thousands_of_ranges_cost_no_more_than_so_many_single_ones() -> None:
    """Else one message of a device that was full for a while holds up all others for minutes."""
    assert steps_of(800) < 6 * steps_of(200)
