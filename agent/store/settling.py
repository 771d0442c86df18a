"""What an ack changes: records leave, and the settled mark moves.

Limits  : the work is that of what leaves; dead letters below the mark cost nothing.
Format  : streams.settled and streams.delivered; the dropped ranges up to the mark are forgotten.
Recovery: one transaction; a row leaves only in the one that counts it as delivered.
"""

import sqlite3

from agent.errors import ProtocolError
from agent.records import Range
from agent.store import streams
from agent.store.choice import UNSETTLED
from agent.store.leases import Name, Spans
from agent.words import quoted

ANOTHER_LIFE = (
    "the store was put back from a copy, or two devices have one; all of it stays held: drop none "
    "of it. Two: give each a device_id of its own. One: stop the agent, move all files aside that "
    "begin with store.path, and start it; then run an agent on those files, with another "
    "device_id, until it holds nothing"
)


class AnotherLife(ProtocolError):
    """The far side has other records under this epoch than were ever made here."""


def deliver(
    connection: sqlite3.Connection,
    name: Name,
    spans: list[Range],
    known: list[Range],
    sent: Spans,
    unstored: list[Range],
    tail: tuple[int, int] | None = None,
    *,
    sure: bool = False,
) -> tuple[int, int, int, int]:
    """Purge `spans` and count: how many left, the settled mark before and after, and how far the
    stream may be sent.

    `known` is all that the far side knows above the mark, `unstored` what of it is dead there;
    `sent` what is out. `tail` is a seq and the digest of the record that is stored as that; to be
    `sure`, that one has to be held here.
    """
    row = connection.execute(
        "SELECT id, produced, coalesce(sendable, produced), settled FROM streams"
        " WHERE epoch = ? AND name = ?",
        name,
    ).fetchone()
    if row is None and name[0]:
        return 0, 0, 0, 0
    key, produced, sendable, before = row or (0, 0, 0, 0)
    _check_tail(connection, key, name[1], tail, sure=sure)
    beyond = max((span.last for span in spans), default=0)
    _check_reach(name, beyond, produced)
    if beyond > produced:
        _learn(connection, key, produced, spans)
        sendable = beyond if sendable == produced else sendable
    _send_again(connection, key, before, unstored)
    sent = Spans(sent)
    for span in unstored:
        sent.remove(span)
    delivered = sum(
        streams.remove(connection, key, part)
        for span in within(spans, sendable)
        for part in _purged(connection, key, span, before, sent)
    )
    settled = _settled(connection, key, before, within(known, sendable), sendable)
    if delivered or settled > before:
        connection.execute(
            "UPDATE streams SET delivered = delivered + ?, settled = ? WHERE id = ?",
            (delivered, settled, key),
        )
        streams.forget_settled(connection, key, settled)
    return delivered, before, settled, sendable


def _check_tail(
    connection: sqlite3.Connection,
    key: int,
    stream: str,
    tail: tuple[int, int] | None,
    *,
    sure: bool,
) -> None:
    """Raises AnotherLife."""
    there = streams.digest_of(connection, key, tail[0]) if tail else None
    if (there is None and sure) or (tail and there not in (None, tail[1])):
        seq = tail[0] if tail else "?"
        raise AnotherLife(
            f"an ack names {quoted(stream)} #{seq}, and another record is stored as that than the"
            " one that is held here: nothing is purged by it",
            ANOTHER_LIFE,
        )


def _check_reach(name: Name, beyond: int, produced: int) -> None:
    """Raises ProtocolError. Of a saved epoch the far side may know more than the file did."""
    if beyond > streams.SEQ_MAX:
        raise ProtocolError(
            f"an ack names {quoted(name[1])} up to {beyond}; no stream goes beyond"
            f" {streams.SEQ_MAX}",
            "look at who may publish to ack on the broker",
        )
    if beyond > produced and not name[0]:
        raise ProtocolError(
            f"an ack names {quoted(name[1])} up to {beyond}, but only {produced} were ever"
            " produced",
            ANOTHER_LIFE,
        )


def within(spans: list[Range], sendable: int) -> list[Range]:
    """What of these spans may be sent."""
    return [Range(s.first, min(s.last, sendable)) for s in spans if s.first <= sendable]


def _send_again(connection: sqlite3.Connection, key: int, mark: int, unstored: list[Range]) -> None:
    """What the far side takes for dead and is held as any other (its dead letter's row was lost
    with a damaged file) becomes a dead letter that is sent again."""
    for span in unstored:
        if span.last > mark:
            connection.execute(
                "INSERT OR IGNORE INTO dead (stream, seq, cause, retry, unsent)"
                " SELECT stream, seq, 'dead at the far side', 1, 1 FROM records"
                " WHERE id BETWEEN ? AND ?",
                streams.keys(key, Range(max(span.first, mark + 1), span.last)),
            )


def _purged(
    connection: sqlite3.Connection, key: int, span: Range, settled: int, sent: Spans
) -> Spans:
    """What of a span is delivered: all above the mark, but for dead letters that were not sent
    again; below it nothing but those that were."""
    above = Range(max(span.first, settled + 1), span.last)
    parts = Spans([above])
    letters = connection.execute(
        "SELECT seq, retry FROM dead WHERE stream = :stream AND unsent"
        " AND seq BETWEEN :above AND :last"
        " UNION ALL SELECT seq, retry FROM dead WHERE stream = :stream AND unsent AND retry"
        " AND seq BETWEEN :first AND :settled",
        {
            "stream": key,
            "first": span.first,
            "last": span.last,
            "above": above.first,
            "settled": min(settled, span.last),
        },
    )
    for seq, retry in letters.fetchall():
        if retry and seq in sent:
            parts.add(Range(seq, seq))
        else:
            parts.remove(Range(seq, seq))
    return parts


def _learn(connection: sqlite3.Connection, key: int, produced: int, spans: list[Range]) -> None:
    """Seqs that the damaged file knew nothing of: delivered as named, the rest lost with it."""
    for span in spans:
        if span.last <= produced:
            continue
        first = max(span.first, produced + 1)
        if first > produced + 1:
            streams.note_drop(connection, key, Range(produced + 1, first - 1), streams.CORRUPTION)
        connection.execute(
            "UPDATE streams SET produced = ?, delivered = delivered + ? WHERE id = ?",
            (span.last, span.last - first + 1, key),
        )
        produced = span.last


def _settled(
    connection: sqlite3.Connection, key: int, mark: int, known: list[Range], sendable: int
) -> int:
    """The settled mark after the far side said what it knows, in ascending order."""
    for span in known:
        if span.first > mark + 1:
            mark = _delivered_through(connection, key, mark, sendable)
        if span.first > mark + 1:
            return mark
        mark = max(mark, span.last)
    return _delivered_through(connection, key, mark, sendable)


def _delivered_through(connection: sqlite3.Connection, key: int, mark: int, sendable: int) -> int:
    """How far from `mark` on every seq was delivered: up to the next that is held or dropped."""
    held, dropped = connection.execute(
        "SELECT (SELECT seq FROM records WHERE id > :above AND id <= :last ORDER BY id LIMIT 1),"
        f" (SELECT max(first, :mark + 1) FROM drops WHERE {UNSETTLED} ORDER BY first LIMIT 1)",
        {
            "stream": key,
            "mark": mark,
            "above": streams.key(key, mark),
            "last": streams.key(key, streams.SEQ_MAX),
        },
    ).fetchone()
    nearest: list[int] = [seq - 1 for seq in (held, dropped) if seq is not None]
    return min([*nearest, max(mark, sendable)])
