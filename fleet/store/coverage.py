"""What of one stream's seqs is there, as ranges: pure, and exact.

A seq is covered when its record is stored whole, or when the device told that it will not come. A
stored record wins over a told range, whichever came first: what is stored is not told. So what is
covered and not told is stored. All up to `mark` is covered; above it, `spans` are.

Only the ranges near those that are to change have to be known: the spans that touch them, and the
told ranges that share a seq with them.
"""

from collections.abc import Iterable

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
    for first, last in holes:
        kept: Seqs = []
        for a, b in ranges:
            if last < a or b < first:
                kept.append((a, b))
                continue
            if a < first:
                kept.append((a, first - 1))
            if last < b:
                kept.append((last + 1, b))
        ranges = kept
    return ranges


class Coverage:
    """One stream, as far as it is known here; changed in memory, and saved by the difference."""

    def __init__(self, mark: int, spans: Iterable[Span] = (), told: Iterable[Told] = ()) -> None:
        self.mark = mark
        self.spans = sorted(spans)
        self.told = sorted(told)

    def stored(self, first: int, last: int) -> Seqs:
        """What of first..last is stored whole."""
        return minus(self.covered(first, last), [(t.first, t.last) for t in self.told])

    def covered(self, first: int, last: int) -> Seqs:
        """What of first..last is stored whole or told."""
        there = [(1, self.mark), *((span.first, span.last) for span in self.spans)]
        return [
            (max(a, first), min(b, last)) for a, b in there if a <= last and first <= b and a <= b
        ]

    def store(self, first: int, last: int, now_us: int) -> None:
        """The records first..last are stored whole now."""
        self.told = _painted([*self.told, Told(first, last, "")])
        self.told = [told for told in self.told if told.reason]
        self._cover(first, last, now_us)

    def tell(self, first: int, last: int, reason: str, now_us: int) -> None:
        """first..last will not come. A dead letter may still be dropped, but not the reverse."""
        new = [Told(a, b, reason) for a, b in minus([(first, last)], self.stored(first, last))]
        dead = [told for told in self.told if told.reason == DEAD]
        rest = [told for told in self.told if told.reason != DEAD]
        layers = [*dead, *new, *rest] if reason == DEAD else [*dead, *rest, *new]
        self.told = _painted(layers)
        self._cover(first, last, now_us)

    def _cover(self, first: int, last: int, now_us: int) -> None:
        """One more covered stretch: joined to all that it touches."""
        touching = [
            span for span in self.spans if span.first <= last + 1 and first <= span.last + 1
        ]
        apart = [span for span in self.spans if span not in touching]
        first = min([first, *(span.first for span in touching)])
        last = max([last, *(span.last for span in touching)])
        if first <= self.mark + 1:
            self.mark = max(self.mark, last)
            self.spans = apart
            return
        below = [span.since_us for span in touching if span.first == first]
        self.spans = sorted([*apart, Span(first, last, min([now_us, *below]))])


def _painted(layers: list[Told]) -> list[Told]:
    """Ranges without overlap: where two lie over each other, the later one counts."""
    seen: list[Told] = []
    for layer in reversed(layers):
        free = minus([(layer.first, layer.last)], [(told.first, told.last) for told in seen])
        seen += [Told(a, b, layer.reason) for a, b in free]
    joined: list[Told] = []
    for told in sorted(seen, key=lambda told: told.first):
        before = joined[-1] if joined else None
        if before and before.reason == told.reason and before.last + 1 == told.first:
            joined[-1] = Told(before.first, told.last, told.reason)
        else:
            joined.append(told)
    return joined
