"""Whether a batch is of the life of its epoch that is stored.

A device's disk was put back from a copy, or two devices have one: then an epoch lives twice, and
gives out its seqs twice. A batch that does not agree with what is stored (one of its records, or
the one right before its first, has another body there) is of another life. Nothing of it is stored,
so that no mark passes from one life to the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agent.protocol import batch
from agent.records import digest
from fleet.store.arrivals import Brought, Refusal
from fleet.store.database import Transaction

_BODIES = """
SELECT r.stream, r.seq, r.body FROM ROWS($1) q JOIN records r
ON r.stream = CAST(q.value->>0 AS bigint)
AND r.seq BETWEEN CAST(q.value->>1 AS bigint) AND CAST(q.value->>2 AS bigint)
"""
Events = Sequence[batch.Event]


class Lives:
    """Of one transaction; `rows` are those that it is about to store: stream, seq, ..., body."""

    def __init__(self, transaction: Transaction, rows: Sequence[tuple[Any, ...]]) -> None:
        self._transaction = transaction
        self._rows = rows
        self._looked_up = 0  # of these rows
        self._bodies: dict[tuple[int, int], bytes] = {}

    async def read(self, asked: list[list[int]]) -> None:
        """The bodies that are stored: stream, first and last seq of each range."""
        if asked:
            rows = await self._transaction.fetch(_BODIES, asked)
            self._bodies |= {(stream, seq): bytes(body) for stream, seq, body in rows}

    def note(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """The last of a batch: it is asked for more often than others."""
        for row in rows:
            self._bodies[row[0], row[1]] = bytes(row[-1])

    async def highest(self, marks: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """By stream, a stored record and its digest: that at its mark, or where none is stored as
        that, the highest below it of those that came in this transaction, if there is one."""
        await self.read([[one, at, at] for one, at in marks.items() if not self._body(one, at)])
        found = {one: at for one, at in marks.items() if (one, at) in self._bodies}
        lacking = {one: at for one, at in marks.items() if one not in found}
        for stream, seq, *_ in self._rows if lacking else ():
            if stream in lacking and found.get(stream, 0) < seq <= lacking[stream]:
                found[stream] = seq
        bodies = {one: self._body(one, seq) for one, seq in found.items()}
        return {one: (found[one], digest(body)) for one, body in bodies.items() if body is not None}

    def conflict(
        self, stream: int, one: Brought, known: Events, tail: tuple[int | None, int | None]
    ) -> Refusal | None:
        """Why a batch is of another life, if it is; `known` are its records that are there.

        `tail` is a stored seq and the digest of its record, if one is known.
        """
        for event in known:
            body = self._body(stream, event.sequence)
            if body is not None and body != bytes(event.data):
                return _conflict(one, event.sequence, bytes(event.data))
        if one.before is None:
            return None
        before = one.events[0].sequence - 1
        there = tail[1] if before == tail[0] else None
        if there is None and (body := self._body(stream, before)) is not None:
            there = digest(body)
        return None if there in (None, one.before) else _conflict(one, before, b"")

    def _body(self, stream: int, seq: int) -> bytes | None:
        """What is stored as this record; some came in this very transaction."""
        if (stream, seq) not in self._bodies:
            for row in self._rows[self._looked_up :]:
                self._bodies[row[0], row[1]] = bytes(row[-1])
            self._looked_up = len(self._rows)
        return self._bodies.get((stream, seq))


def _conflict(one: Brought, seq: int, body: bytes) -> Refusal:
    """Why a batch is not stored: `seq` is stored already, with another body than the device's."""
    cause = (
        f"{one.name[1]} {one.name[2]} #{seq}: it is stored already, with another body; that stays, "
        f"and nothing {'of its batch' if body else 'that follows'} is stored"
    )
    place = one.name, one.events[0].sequence, one.events[-1].sequence
    return Refusal(one.arrival.topic, cause, body, one.name[0], *place, conflict=True)
