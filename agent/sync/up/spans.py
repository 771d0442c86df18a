"""Ranges of seqs, as sets."""

from collections.abc import Iterable

from agent.records import Range


def without(span: Range, taken: Iterable[Range]) -> list[Range]:
    """What of `span` is in none of `taken`, ascending."""
    left, first = [], span.first
    for one in sorted(taken, key=lambda r: r.first):
        if one.last < first:
            continue
        if one.first > span.last:
            break
        if one.first > first:
            left.append(Range(first, one.first - 1))
        first = one.last + 1
    if first <= span.last:
        left.append(Range(first, span.last))
    return left


def meet(one: Range, other: Range) -> bool:
    """Whether they have a seq in common."""
    return one.first <= other.last and other.first <= one.last
