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

    async def digests(self, places: Mapping[int, int]) -> dict[int, int | None]:
        """By stream, the digest of the record with this seq; None: it is not stored."""
        bodies = {stream: self._body(stream, seq) for stream, seq in places.items()}
        await self.read([[one, places[one], places[one]] for one in bodies if bodies[one] is None])
        for stream in bodies:
            bodies[stream] = self._bodies.get((stream, places[stream]))
        return {stream: None if body is None else digest(body) for stream, body in bodies.items()}

    def conflict(
        self, stream: int, one: Brought, known: Events, tail: tuple[int, int | None]
    ) -> Refusal | None:
        """Why a batch is of another life, if it is; `known` are its records that are there.

        `tail` is the stream's mark, and the digest of the record there, if that is known.
        """
        for event in known:
            body = self._body(stream, event.sequence)
            if body is not None and body != bytes(event.data):
                return _conflict(one, event.sequence, bytes(event.data))
        before = one.events[0].sequence - 1
        if one.before is None or (before, one.before) == tail:
            return None
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
