"""The rows of the command journal, and each change of one within a transaction.

Limits  : journal.py has them.
Format  : sql/0015.sql.
Recovery: every function runs inside one transaction. What a damaged file knows of its commands is
          carried over, with their numbers, so that none has a second effect (`carry`).
"""

import sqlite3
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from agent.errors import StoreDamaged
from agent.masked import masked_value
from agent.records import RecordType, Stamp
from agent.store import streams

State = Literal["accepted", "running", "succeeded", "failed", "expired", "interrupted"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "expired", "interrupted")
STREAM = "commands"
LATEST_S = 100 * 365.0 * 86_400  # what expires later does so then: nanoseconds have an end
COLUMNS = (
    "number, id, digest, name, args, door, issuer, by, issued_us, expires_us, expires_ns, state,"
    " attempts, step, accepted_us, ended_us, reason, message, hint, result, reply, told"
)
_CARRIED = f"accepted_ns, ended_ns, {COLUMNS}"


class Entry(Struct, frozen=True, kw_only=True):
    """A command of the journal. `args`, `result` and `reply` are JSON, `digest` tells it from
    another of its id; times are wall labels, but for `expires_ns`, of the store's own clock."""

    number: int
    id: str
    digest: bytes
    name: str
    args: bytes
    door: str
    issuer: str
    by: str
    issued_us: int | None
    expires_us: int | None
    expires_ns: int | None
    state: State
    attempts: int
    step: str
    accepted_us: int
    ended_us: int | None
    reason: str
    message: str
    hint: str
    result: bytes | None
    reply: bytes | None
    told: bool


class New(Struct, frozen=True, kw_only=True):
    """A command to be accepted. `expires_in_s` is None where it does not expire, or nobody knows
    what time it is. `about`: it is about another one, as to take it back."""

    id: str
    digest: bytes
    name: str
    args: bytes
    door: str
    issuer: str = ""
    by: str = ""
    issued_us: int | None = None
    expires_us: int | None = None
    expires_in_s: float | None = None
    reply: bytes | None = None
    about: bool = False


class Refusal(Struct, frozen=True, kw_only=True):
    """What came and was not accepted."""

    id: str
    name: str
    door: str
    reason: str
    message: str
    hint: str = ""
    issuer: str = ""
    by: str = ""
    reply: bytes | None = None
    number: int = 0
    at_us: int = 0


class End(Struct, frozen=True, kw_only=True):
    """How a command ended."""

    state: State
    reason: str = ""
    message: str = ""
    hint: str = ""
    result: bytes | None = None


def entry(row: tuple[object, ...]) -> Entry:
    """COLUMNS as an entry."""
    return Entry(**dict(zip(Entry.__struct_fields__, row, strict=True)))  # type: ignore[arg-type]


def find(connection: sqlite3.Connection, name: str) -> Entry | None:
    """The command of this id."""
    row = connection.execute(f"SELECT {COLUMNS} FROM commands WHERE id = ?", (name,)).fetchone()
    return entry(row) if row else None


def one(connection: sqlite3.Connection, number: int) -> Entry:
    """The command with this number.

    Raises StoreDamaged when it is gone: another file took the place of the one it was in.
    """
    row = connection.execute(f"SELECT {COLUMNS} FROM commands WHERE number = ?", (number,))
    if found := row.fetchone():
        return entry(found)
    raise StoreDamaged(f"command {number} is no longer in the store", "order it again")


def insert(connection: sqlite3.Connection, new: New, stamp: Stamp, now_ns: int) -> Entry:
    """A command is accepted."""
    left_s = new.expires_in_s
    expires_ns = None if left_s is None else now_ns + int(min(left_s, LATEST_S) * 1e9)
    number = connection.execute(
        "INSERT INTO commands (id, digest, name, args, door, issuer, by, issued_us, expires_us,"
        " expires_ns, state, accepted_ns, accepted_us, reply)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'accepted', ?, ?, ?)",
        (
            *(new.id, new.digest, new.name, new.args, new.door, new.issuer, new.by),
            *(new.issued_us, new.expires_us, expires_ns, now_ns, stamp.wall_us, new.reply),
        ),
    ).lastrowid
    tally(connection, "accepted")
    return one(connection, int(number or 0))


def end(
    connection: sqlite3.Connection, number: int, how: End, stamp: Stamp, now_ns: int
) -> tuple[Entry, bool]:
    """A command has ended; it as it is now, and whether that is news: it may have before."""
    changed = connection.execute(
        "UPDATE commands SET state = ?, reason = ?, message = ?, hint = ?, result = ?,"
        " ended_ns = ?, ended_us = ? WHERE number = ? AND ended_ns IS NULL",
        (
            *(how.state, how.reason, how.message, how.hint, how.result),
            *(now_ns, stamp.wall_us, number),
        ),
    ).rowcount
    if changed:
        tally(connection, how.state)
    return one(connection, number), bool(changed)


def record(connection: sqlite3.Connection, ended: Entry, stamp: Stamp) -> None:
    """What became of a command, for the cloud, beside its end in one transaction.

    Its args without what looks like a secret: they may be a configuration as it stands here.
    """
    body = msgspec.json.encode(
        {
            **{key: getattr(ended, key) for key in ("number", "id", "name", "door", "issuer")},
            **{key: getattr(ended, key) for key in ("by", "state", "reason", "message", "hint")},
            "args": masked_value(msgspec.json.decode(ended.args)),
            "result": Raw(ended.result) if ended.result else None,
            "accepted_us": ended.accepted_us,
            "ended_us": ended.ended_us,
        }
    )
    _append(connection, stamp, body)


def record_refusal(connection: sqlite3.Connection, refusal: Refusal, stamp: Stamp) -> None:
    """What was not accepted, for the cloud, beside the refusal in one transaction."""
    body = msgspec.json.encode(
        {
            **{key: getattr(refusal, key) for key in ("id", "name", "door", "issuer", "by")},
            **{key: getattr(refusal, key) for key in ("reason", "message", "hint")},
            "state": "refused",
            "ended_us": stamp.wall_us,
        }
    )
    _append(connection, stamp, body)


def _append(connection: sqlite3.Connection, stamp: Stamp, body: bytes) -> None:
    stream = streams.stream_id(connection, STREAM)
    streams.append(connection, stream, RecordType.COMMAND, stamp, body)


def refuse(connection: sqlite3.Connection, refusal: Refusal, stamp: Stamp, keep: int) -> int:
    """Keep a refusal, and the newest `keep` of them; its number."""
    number = connection.execute(
        "INSERT INTO command_refusals (id, name, door, issuer, by, at_us, reason, message, hint,"
        " reply) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(refusal.id, refusal.name, refusal.door, refusal.issuer, refusal.by),
            *(stamp.wall_us, refusal.reason, refusal.message, refusal.hint, refusal.reply),
        ),
    ).lastrowid
    connection.execute("DELETE FROM command_refusals WHERE number <= ?", (int(number or 0) - keep,))
    tally(connection, f"refused:{refusal.reason}")
    return int(number or 0)


def is_refused(connection: sqlite3.Connection, refusal: Refusal) -> bool:
    """Whether the same, by its id, was refused before at this door, and for this reason."""
    found = connection.execute(
        "SELECT 1 FROM command_refusals WHERE id = ? AND door = ? AND reason = ? LIMIT 1",
        (refusal.id, refusal.door, refusal.reason),
    )
    return found.fetchone() is not None


def refusals(connection: sqlite3.Connection, where: str, count: int) -> list[Refusal]:
    """Those for which `where` holds, the oldest first."""
    rows = connection.execute(
        "SELECT id, name, door, reason, message, hint, issuer, by, reply, number, at_us"
        f" FROM command_refusals WHERE {where} ORDER BY number LIMIT ?",
        (count,),
    )
    return [Refusal(**dict(zip(Refusal.__struct_fields__, row, strict=True))) for row in rows]


def forget(connection: sqlite3.Connection, where: str, values: tuple[int, ...]) -> int:
    """Forget ended commands; of signed ones it stays known how new they were. How many."""
    connection.execute(
        "INSERT INTO command_horizons SELECT by, max(issued_us) FROM commands"
        f" WHERE by != '' AND issued_us IS NOT NULL AND {where} GROUP BY by"
        " ON CONFLICT (by) DO UPDATE SET issued_us = max(issued_us, excluded.issued_us)",
        values,
    )
    gone = connection.execute(f"DELETE FROM commands WHERE {where}", values).rowcount
    tally(connection, "forgotten", gone)
    return gone


def horizon_us(connection: sqlite3.Connection, by: str) -> int | None:
    """How new the newest forgotten command of a signer was."""
    row = connection.execute(
        "SELECT issued_us FROM command_horizons WHERE by = ?", (by,)
    ).fetchone()
    return row[0] if row else None


def tally(connection: sqlite3.Connection, event: str, count: int = 1) -> None:
    """Count what became of commands."""
    if count:
        connection.execute(
            "INSERT INTO command_counts VALUES (?1, ?2) ON CONFLICT (event)"
            " DO UPDATE SET count = count + ?2",
            (event, count),
        )


def carry(connection: sqlite3.Connection, wreck: Path) -> None:
    """What a damaged file knows of its commands. Raises sqlite3.Error where it breaks off."""
    former = sqlite3.connect(wreck)
    try:
        rows = former.execute(f"SELECT {_CARRIED} FROM commands ORDER BY number").fetchall()
        horizons = former.execute("SELECT by, issued_us FROM command_horizons").fetchall()
    finally:
        former.close()
    marks = ", ".join("?" * len(_CARRIED.split(",")))
    connection.executemany(f"INSERT OR IGNORE INTO commands ({_CARRIED}) VALUES ({marks})", rows)
    connection.executemany(
        "INSERT INTO command_horizons VALUES (?, ?) ON CONFLICT (by)"
        " DO UPDATE SET issued_us = max(issued_us, excluded.issued_us)",
        horizons,
    )
