"""Spans of seqs against a set of them, and leases against what threads may do to them."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.records import Range
from agent.store.leases import Leases, Spans

NAME = ("e", "a")
ranges = st.builds(
    lambda first, more: Range(first, first + more), st.integers(1, 30), st.integers(-1, 9)
)
steps = st.lists(st.tuples(st.booleans(), ranges), max_size=30)


def seqs(*spans: Range) -> set[int]:
    return {seq for span in spans for seq in range(span.first, span.last + 1)}


@settings(max_examples=500)
@given(steps, st.integers(0, 45))
def test_spans_are_a_set_of_seqs(some: list[tuple[bool, Range]], seq: int) -> None:
    spans, model = Spans(), set[int]()
    for adds, span in some:
        if adds:
            spans.add(span)
            model |= seqs(span)
        else:
            spans.remove(span)
            model -= seqs(span)
        found = list(spans)
        assert seqs(*found) == model
        assert len(spans) == len(found)
        ends = [end for one in found for end in (one.first, one.last)]
        assert ends == sorted(ends)
        assert all(b.first > a.last + 1 for a, b in pairwise(found)), "apart"
    assert (seq in spans) == (seq in model)
    assert seqs(*spans.from_on(seq)) == {one for one in model if one >= seq}


@given(st.lists(st.tuples(st.sampled_from("tsrhlk"), ranges), max_size=20), st.lists(ranges))
def test_what_is_free_is_what_is_neither_out_nor_held_back_nor_known(
    some: list[tuple[str, Range]], again: list[Range]
) -> None:
    leases = Leases()
    leases.take(NAME, Range(1, 1), leases.moment)
    out, held, known, mark = {1}, set[int](), set[int](), 0
    for what, span in some:
        inside = seqs(span)
        if what == "t":
            assert leases.take(NAME, span, leases.moment)
            out |= inside
        elif what == "s":
            known |= inside
            mark = max(mark, span.first - 1)
            leases.settle(NAME, leases.known(NAME, [span]), mark)
            out -= known | set(range(1, mark + 1))
            known -= set(range(1, mark + 1))
        elif what == "r":
            leases.release(NAME, span)
            out -= inside
        elif what == "h":
            leases.hold_back(NAME, span)
            held |= inside
        elif what == "l":
            leases.let_go(NAME, span)
            held -= inside
        else:
            leases.rewind(NAME)
            out, known = set(), set()
    assert seqs(*leases.out(NAME)) == out
    letters, whole = seqs(*again), Range(mark + 1, 40)
    may = ({*range(mark + 1, 41)} - known) | letters
    assert seqs(*leases.free(NAME, whole, again)) == may - out - held
    assert seqs(*leases.free(NAME, whole, again, held_back=True)) == may - out


def test_a_lease_is_not_noted_when_others_were_ended_meanwhile() -> None:
    leases = Leases()
    for ends in (lambda: leases.rewind(None), lambda: leases.hold_back(NAME, Range(5, 5))):
        moment = leases.moment
        ends()
        assert not leases.take(NAME, Range(1, 3), moment)
        assert leases.out(NAME) == []
    assert leases.take(NAME, Range(1, 3), leases.moment)
    leases.release(("e", "another"), Range(1, 3))
    leases.rewind(("e", "another"))
    assert leases.out(NAME) == [Range(1, 3)]


def test_a_stream_that_was_never_leased_is_not_noted_by_its_acks() -> None:
    leases = Leases()
    leases.settle(NAME, [Range(4, 6)], 2)
    assert leases.known(NAME, []) == []
