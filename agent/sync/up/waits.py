"""What is out without an ack, and how long each stream has waited for one.

Limits: the uplink bounds what is out by bytes; this holds a line for each parcel of it.
A stream of which nothing is answered in its patience is sent again, more and more slowly; one
stream's acks do not answer for another, and one whose blob grows over there is not silent. Of a
stream that goes on, a parcel that was overtaken by a later one is sent again after the first
patience, alone.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct

from agent.records import Range
from agent.store.outbox import Name
from agent.sync.up.parcels import Parcel
from agent.sync.up.spans import without

RETRY_S_MAX = 600.0
RESERVE = 8  # live records may have this part of the bound, where others fill it


class Out(Struct, eq=False):
    """A parcel that is out. `since`: the broker has answered all of it (monotonic)."""

    parcel: Parcel
    size_bytes: int
    since: float | None = None
    turn: int = 0  # in which order the broker answered
    unheard: list[Range] | None = None  # of which no ack spoke since (None: all of it)
    passed: int = 0  # the highest turn that got through, by the acks that spoke of it
    refused: str = ""  # what it said, if that was a no


class Overdue(Struct, frozen=True):
    """A parcel to be sent again. `overtaken`: later ones of its stream got through since."""

    out: Out
    overtaken: bool


class _Stream:
    def __init__(self, patience_s: float) -> None:
        self.outs: list[Out] = []
        self.patience_s = patience_s
        self.heard_at = 0.0  # monotonic: the last answer, or the last time it was sent again
        self.missed = False  # the last patience ended without an answer
        self.turn = 0  # the highest of those that got through


class Waits:
    """Of all streams, for one connection after the other."""

    def __init__(self, patience_s: float) -> None:
        self.bytes = 0
        self._live_bytes = 0
        self._patience_s = patience_s
        self._streams: dict[Name, _Stream] = {}
        self._turns = 0

    def has_room(self, bytes_max: int, *, live: bool) -> bool:
        """Whether one more may go out; live ones have a reserve of their own."""
        return self.bytes < bytes_max or (live and self._live_bytes < bytes_max // RESERVE)

    def add(self, parcel: Parcel) -> Out:
        """One more goes out."""
        out = Out(parcel, parcel.size_bytes)
        of = self._streams.setdefault(parcel.name, _Stream(self._patience_s))
        of.outs.append(out)
        self._count(out, 1)
        return out

    def of(self, name: Name) -> list[Out]:
        """What is out of a stream."""
        return list(self._streams[name].outs) if name in self._streams else []

    def taken(self, out: Out, now: float, refused: str = "") -> None:
        """The broker has answered all of it; from now on its ack is waited for."""
        self._turns += 1
        out.since, out.turn, out.refused = now, self._turns, refused

    def goes_on(self, name: Name, now: float) -> None:
        """The far side takes in a blob of the stream: it is slow, not silent."""
        if of := self._streams.get(name):
            of.heard_at, of.missed = now, False

    def remove(self, out: Out) -> None:
        """It is not out any more, and was not answered."""
        of = self._streams[out.parcel.name]
        if out in of.outs:
            of.outs.remove(out)
            self._count(out, -1)

    def sending(self, name: Name, dead: list[Range]) -> set[int]:
        """The seqs of these ranges, ascending, whose records are out."""
        found: set[int] = set()
        for out in self._streams[name].outs if name in self._streams and dead else ():
            at = bisect_left(dead, out.parcel.span.first, key=lambda one: one.last)
            if at < len(dead) and dead[at].first <= out.parcel.span.last:
                seqs = [record.seq for record in out.parcel.records]
                found |= {seq for seq in seqs for one in dead[at:] if one.first <= seq <= one.last}
        return found

    def settle(
        self,
        name: Name,
        mark: int,
        ranges: Iterable[Range],
        now: float,
        *,
        moved: bool,
        sending: Collection[int] = (),
        listed: Sequence[Range] = (),
    ) -> list[Out]:
        """The far side knows all up to `mark`, and these: the parcels that this answers.

        `moved`: the mark did. `sending`: records that are out, and are not stored yet. `listed`:
        the seqs of which the far side spoke, if not of all.
        """
        of = self._streams.get(name)
        if of is None:
            return []
        above = [one for one in ranges if one.last > mark]
        answered = [
            out
            for out in of.outs
            if (
                out.parcel.span.last <= mark
                or not without(out.parcel.span, [Range(1, mark), *above])
            )
            and not (sending and any(record.seq in sending for record in out.parcel.records))
        ]
        if answered or moved:
            of.heard_at, of.patience_s, of.missed = now, self._patience_s, False
        if answered:
            of.outs = [out for out in of.outs if out not in answered]
            of.turn = max(of.turn, *(out.turn for out in answered))
        for out in answered:
            self._count(out, -1)
        for out in of.outs:
            _heard(out, of.turn, listed)
        return answered

    def overdue(self, now: float) -> list[Overdue]:
        """What is to be sent again; it is out no more."""
        return [one for of in self._streams.values() for one in self._overdue(of, now)]

    def _overdue(self, of: _Stream, now: float) -> list[Overdue]:
        late = [
            out for out in of.outs if out.since is not None and now - out.since >= self._patience_s
        ]
        if not late:
            return []
        waiting_since = max(of.heard_at, min(out.since for out in late if out.since is not None))
        overtaken = [out for out in late if out.turn < out.passed]
        if now - waiting_since >= of.patience_s:
            of.missed, of.heard_at = True, now
            of.patience_s = min(of.patience_s * 2, RETRY_S_MAX)
            found = late
        else:
            found = overtaken
        for out in found:
            self.remove(out)
        return [Overdue(out, out in overtaken) for out in found]

    def clear(self) -> None:
        """The connection ended: nothing is out, and the missing acks were its fault."""
        self.bytes = self._live_bytes = 0
        for of in self._streams.values():
            of.outs, of.patience_s, of.turn = [], self._patience_s, 0

    def missed(self) -> dict[str, float]:
        """The streams whose last patience ended without an answer, and the next patience."""
        return {name[1]: of.patience_s for name, of in self._streams.items() if of.missed}

    def _count(self, out: Out, sign: int) -> None:
        self.bytes += sign * out.size_bytes
        self._live_bytes += sign * out.size_bytes if out.parcel.live else 0


def _heard(out: Out, turn: int, listed: Sequence[Range]) -> None:
    """An ack came that does not answer it: it was overtaken, if the ack would have said so."""
    if out.since is None:
        return
    if not listed:
        out.passed = turn
        return
    unheard = [out.parcel.span] if out.unheard is None else out.unheard
    out.unheard = [left for span in unheard for left in without(span, listed)]
    if not out.unheard:
        out.passed = turn
