"""What of one stream's seqs is there, as ranges: pure, and exact.

A seq is covered when its record is stored whole, or when the device told that it will not come. A
stored record wins over a told range, whichever came first: what is stored is not told. So what is
covered and not told is stored. All up to `mark` is covered; above it, `spans` are.

Only the ranges near those that are to change have to be known: the spans that touch them, and the
told ranges that share a seq with them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from msgspec import Struct

DEAD = "dead"


class Span(Struct, frozen=True, order=True):
    """A covered stretch above the mark. The gap right below it is known since `since_us`."""

    first: int
    last: int
    since_us: int


class Told(Struct, frozen=True, order=True):
    """Seqs that will not come, by the device's word."""

    first: int
    last: int
    reason: str


Seqs = list[tuple[int, int]]


def runs(seqs: Iterable[int]) -> Seqs:
    """Ascending seqs as ranges."""
    seqs = list(seqs)
    if seqs and seqs[-1] - seqs[0] == len(seqs) - 1:
        return [(seqs[0], seqs[-1])]
    found: Seqs = []
    for seq in seqs:
        if found and seq == found[-1][1] + 1:
            found[-1] = (found[-1][0], seq)
        else:
            found.append((seq, seq))
    return found


def minus(ranges: Seqs, holes: Iterable[tuple[int, int]]) -> Seqs:
    """What of the ranges lies in none of the holes."""
    apart = _joined(holes)
    kept: Seqs = []
    for first, last in ranges:
        for a, b in apart[bisect_left(apart, first, key=_end) :]:
            if last < a:
                break
            if first < a:
                kept.append((first, a - 1))
            first = b + 1
        if first <= last:
            kept.append((first, last))
    return kept


def _joined(ranges: Iterable[tuple[int, int]]) -> Seqs:
    """Ranges in order, those that overlap as one."""
    joined: Seqs = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _end(pair: tuple[int, int]) -> int:
    return pair[1]


def _first(of: Span | Told) -> int:
    return of.first


def _last(of: Span | Told) -> int:
    return of.last


def _among(ranges: Sequence[Span] | Sequence[Told], first: int, last: int) -> slice:
    """Where those lie that share a seq with first..last."""
    return slice(
        bisect_left(ranges, first, key=_last),
        bisect_right(ranges, last, key=_first),
    )


class Coverage:
    """One stream, as far as it is known here; changed in memory, and saved by the difference.

    A message may tell thousands of ranges: each change looks at what it touches, and no further.
    """

    def __init__(self, mark: int, spans: Iterable[Span] = (), told: Iterable[Told] = ()) -> None:
        self.mark = mark
        self.spans = sorted(spans)
        self.told = sorted(told)

    def stored(self, first: int, last: int) -> Seqs:
        """What of first..last is stored whole."""
        told = self.told[_among(self.told, first, last)]
        return minus(self.covered(first, last), [(t.first, t.last) for t in told])

    def covered(self, first: int, last: int) -> Seqs:
        """What of first..last is stored whole or told."""
        spans = self.spans[_among(self.spans, first, last)]
        there = [(1, self.mark), *((span.first, span.last) for span in spans)]
        return [
            (max(a, first), min(b, last)) for a, b in there if a <= last and first <= b and a <= b
        ]

    def store(self, first: int, last: int, now_us: int) -> None:
        """The records first..last are stored whole now."""
        at = _among(self.told, first, last)
        self.told[at] = _outside(self.told[at], first, last)
        self._cover(first, last, now_us)

    def tell(self, first: int, last: int, reason: str, now_us: int) -> None:
        """first..last will not come. A dead letter may still be dropped, but not the reverse."""
        new = minus([(first, last)], self.stored(first, last))
        at = _among(self.told, first - 1, last + 1)  # with its neighbours, to be one with them
        there = self.told[at]
        kept = _outside(there, first, last)
        if reason == DEAD:
            dropped = [one for one in there if one.reason != DEAD]
            new = minus(new, [(one.first, one.last) for one in dropped])
            kept += _inside(dropped, first, last)
        self.told[at] = _one_by_one([*kept, *(Told(a, b, reason) for a, b in new)])
        self._cover(first, last, now_us)

    def _cover(self, first: int, last: int, now_us: int) -> None:
        """One more covered stretch: joined to all that it touches."""
        at = _among(self.spans, first - 1, last + 1)
        touching = self.spans[at]
        first = min([first, *(span.first for span in touching)])
        last = max([last, *(span.last for span in touching)])
        if first <= self.mark + 1:
            self.mark = max(self.mark, last)
            self.spans[at] = []
            return
        below = [span.since_us for span in touching if span.first == first]
        self.spans[at] = [Span(first, last, min([now_us, *below]))]


class Ranges:
    """The coverage of a stream, and what it was when it was read."""

    def __init__(self, mark: int, spans: list[Span], told: list[Told]) -> None:
        self.now = Coverage(mark, spans, told)
        self._spans, self._told = set(spans), set(told)

    def spans(self) -> tuple[set[Span], set[Span]]:
        """Those that went, and those that came."""
        return self._spans - set(self.now.spans), set(self.now.spans) - self._spans

    def told(self) -> tuple[set[Told], set[Told]]:
        """Those that went, and those that came."""
        return self._told - set(self.now.told), set(self.now.told) - self._told


def _outside(told: Iterable[Told], first: int, last: int) -> list[Told]:
    """What of these does not lie in first..last."""
    parts = [
        part
        for one in told
        for part in (
            Told(one.first, min(one.last, first - 1), one.reason),
            Told(max(one.first, last + 1), one.last, one.reason),
        )
    ]
    return [part for part in parts if part.first <= part.last]


def _inside(told: Iterable[Told], first: int, last: int) -> list[Told]:
    """What of these lies in first..last."""
    parts = [Told(max(one.first, first), min(one.last, last), one.reason) for one in told]
    return [part for part in parts if part.first <= part.last]


def _one_by_one(told: Iterable[Told]) -> list[Told]:
    """In order; neighbours of the same reason as one."""
    joined: list[Told] = []
    for one in sorted(told, key=_first):
        before = joined[-1] if joined else None
        if before and before.reason == one.reason and before.last + 1 == one.first:
            joined[-1] = Told(before.first, one.last, one.reason)
        else:
            joined.append(one)
    return joined
