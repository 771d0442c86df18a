"""What of each stream is out, held back, or known to the far side: in memory, as spans of seqs.

Limits  : a stream has as many spans as were leased apart, and ranges acknowledged apart; whoever
          leases and acknowledges bounds both.
Format  : none; it is in memory alone.
Recovery: it ends with the process, and leases with the connection (`rewind`).

A lease is noted in the store's thread, everything else in the event loop's; `lock` is held for an
instant each time. A lease that is being made when others are ended is not made.
"""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from agent.records import Range

Name = tuple[str, str]  # a stream's whole name: its epoch and what it is called


class Spans:
    """A set of seqs as disjoint spans in ascending order; neighbours are one span."""

    def __init__(self, spans: Iterable[Range] = ()) -> None:
        self._spans: list[Range] = []
        for span in spans:
            self.add(span)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, seq: int) -> bool:
        at = bisect_left(self._spans, seq, key=_last)
        return at < len(self._spans) and self._spans[at].first <= seq

    def add(self, span: Range) -> None:
        """Its seqs are in; what it touches becomes one with it. An empty span changes nothing."""
        if span.last < span.first:
            return
        begin, end = self._among(span.first - 1, span.last + 1)
        if begin < end:
            first = min(span.first, self._spans[begin].first)
            span = Range(first, max(span.last, self._spans[end - 1].last))
        self._spans[begin:end] = [span]

    def remove(self, span: Range) -> None:
        """Its seqs are in no more; what was around them may fall in two."""
        begin, end = self._among(span.first, span.last)
        if begin == end or span.last < span.first:
            return
        before = Range(self._spans[begin].first, span.first - 1)
        behind = Range(span.last + 1, self._spans[end - 1].last)
        self._spans[begin:end] = [one for one in (before, behind) if one.first <= one.last]

    def from_on(self, seq: int) -> list[Range]:
        """What there is at and above a seq."""
        begin = bisect_left(self._spans, seq, key=_last)
        return [Range(max(one.first, seq), one.last) for one in self._spans[begin:]]

    def _among(self, first: int, last: int) -> tuple[int, int]:
        """The places of the spans that have a seq in first..last."""
        return (
            bisect_left(self._spans, first, key=_last),
            bisect_right(self._spans, last, key=_first),
        )


def _first(span: Range) -> int:
    return span.first


def _last(span: Range) -> int:
    return span.last


class _Stream:
    """Of one stream: what is out, and what of that is dead letters that are sent again; what is
    held back, what of it the far side knows above its mark, and which lease of all was its last."""

    def __init__(self) -> None:
        self.out, self.held_back, self.known = Spans(), Spans(), Spans()
        self.again = Spans()
        self.turn = 0


class Leases:
    """Of all streams; for any thread."""

    def __init__(self) -> None:
        self.count = 0  # leases so far
        self._streams: dict[Name, _Stream] = {}
        self._ended = 0
        self._lock = threading.Lock()

    @property
    def moment(self) -> int:
        """What `take` needs to know of the time when a lease was asked for."""
        return self._ended

    def take(self, name: Name, span: Range, moment: int, again: Iterable[int] = ()) -> bool:
        """Note a lease, in which dead letters are sent `again`; False, and nothing is noted, where
        leases were ended since `moment`."""
        with self._lock:
            if moment != self._ended:
                return False
            self.count += 1
            of = self._streams.setdefault(name, _Stream())
            of.out.add(span)
            for seq in again:
                of.again.add(Range(seq, seq))
            of.turn = self.count
            return True

    def free(
        self, name: Name, span: Range, again: Iterable[Range] = (), *, held_back: bool = False
    ) -> Spans:
        """What of `span` can be leased, and of `again`, which the far side only heard of.

        `held_back`: also what is held back.
        """
        with self._lock:
            of = self._streams.get(name) or _Stream()
            found = Spans([span])
            for one in of.known:
                found.remove(one)
            for one in again:
                found.add(one)
            for taken in (of.out,) if held_back else (of.out, of.held_back):
                for one in taken:
                    found.remove(one)
            return found

    def out(self, name: Name) -> list[Range]:
        """What is out, ascending."""
        with self._lock:
            return list(self._streams[name].out) if name in self._streams else []

    def again(self, name: Name) -> set[int]:
        """The dead letters that are out."""
        with self._lock:
            found = self._streams[name].again if name in self._streams else ()
            return {seq for span in found for seq in range(span.first, span.last + 1)}

    def turn(self, name: Name) -> int:
        """The number of the stream's last lease among all; 0: it had none."""
        return self._streams[name].turn if name in self._streams else 0

    def release(self, name: Name, span: Range) -> None:
        """These seqs are out no more."""
        with self._lock:
            if of := self._streams.get(name):
                of.out.remove(span)
                of.again.remove(span)

    def rewind(self, name: Name | None) -> None:
        """Nothing is out any more, of one stream or of all, and nothing known above the mark."""
        with self._lock:
            self._ended += 1
            for one, of in self._streams.items():
                if name in (None, one):
                    of.out, of.known, of.again = Spans(), Spans(), Spans()

    def hold_back(self, name: Name, span: Range) -> None:
        """Lease these seqs no more."""
        with self._lock:
            self._ended += 1
            self._streams.setdefault(name, _Stream()).held_back.add(span)

    def let_go(self, name: Name, span: Range) -> None:
        """These seqs are held back no more."""
        with self._lock:
            if of := self._streams.get(name):
                of.held_back.remove(span)

    def known(self, name: Name, spans: Iterable[Range]) -> list[Range]:
        """What the far side knows, with these spans: ascending."""
        with self._lock:
            known = Spans(self._streams[name].known) if name in self._streams else Spans()
            for span in spans:
                known.add(span)
            return list(known)

    def settle(
        self,
        name: Name,
        known: Iterable[Range],
        mark: int,
        sending: Iterable[Range] = (),
        said: Iterable[Range] | None = None,
    ) -> None:
        """The far side knows all up to `mark`, and these spans: they are out no more.

        But `sending` are, if they were: it knows that they are dead, and may get them yet. So are
        dead letters of which it did not speak now (`said`; None: it spoke of all).
        Of a stream that was never leased nothing is noted: its name may be anything.
        """
        with self._lock:
            if of := self._streams.get(name):
                stay = [one for one in sending if one.first in of.out]
                letters = Spans(of.again if said is not None else ())
                for span in said or ():
                    letters.remove(span)
                of.again = Spans([*letters, *(one for one in stay if one.first in of.again)])
                stay += letters
                for span in known:
                    of.known.add(span)
                    of.out.remove(span)
                of.out.remove(Range(1, mark))
                of.known.remove(Range(1, mark))
                for one in stay:
                    of.out.add(one)
