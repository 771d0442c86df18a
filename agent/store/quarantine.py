"""A damaged store file is put aside, never thrown away, and never written to again by producers.

Limits  : KEPT_MAX files; of those that are read to their end the oldest goes first.
Format  : `<file>.quarantine-<UTC>`, its `-wal` and `.head` beside it; a row of `salvages` each.
Recovery: the file is moved before its WAL, and what lies here without a row gets one at the next
          open, so a crash at any point of it is gone on from.
"""

import os
import sqlite3
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from agent.store import head

KEPT_MAX = 3
_MARK = ".quarantine-"
_PARTS = ("-wal", "-shm", ".head", ".page1")
CARRIED = ("takes", "boots", "bindings")  # small tables that producers go on with


def put_aside(store: Path, wall_s: float) -> Path:
    """Move the store's files away; the new path of the file itself. Raises OSError."""
    stamp = datetime.fromtimestamp(wall_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, count = store.with_name(f"{store.name}{_MARK}{stamp}"), 1
    while any(aside.with_name(aside.name + part).exists() for part in ("", *_PARTS)):
        count += 1
        aside = store.with_name(f"{store.name}{_MARK}{stamp}.{count}")
    for part in ("", "-wal", ".head"):
        with suppress(FileNotFoundError):
            store.with_name(store.name + part).rename(aside.with_name(aside.name + part))
    store.with_name(f"{store.name}-shm").unlink(missing_ok=True)
    sync(store.parent)
    return aside


def finish(store: Path) -> None:
    """After a crash between two moves: the store's file is gone, and its parts follow it."""
    asides = kept(store)
    for part in ("-wal", ".head") if asides else ():
        left = store.with_name(store.name + part)
        there = asides[-1].with_name(asides[-1].name + part)
        if left.exists() and not there.exists():
            left.rename(there)


def kept(store: Path) -> list[Path]:
    """What was put aside, the oldest first; the file itself may be missing."""
    found = set()
    for path in store.parent.glob(f"{store.name}{_MARK}*"):
        name = path.name
        for part in _PARTS:
            name = name.removesuffix(part)
        found.add(path.with_name(name))
    return sorted(found)


def note(
    connection: sqlite3.Connection, store: Path, causes: dict[str, tuple[str, bool]], now_us: int
) -> None:
    """Give each file that lies aside its row, and carry over what producers go on with.

    `causes` is why, by name, and whether the file itself knows how much was in it.
    """
    known = {name for (name,) in connection.execute("SELECT name FROM salvages")}
    for aside in kept(store):
        if aside.name in known:
            continue
        former = head.read(aside)
        cause, exact = causes.get(aside.name, ("the agent ended before it could note why", False))
        epoch = former.epoch if former else ""
        connection.execute(
            "INSERT INTO salvages (name, epoch, cause, at_us, state, exact)"
            " VALUES (?, ?, ?, ?, 'waiting', ?)",
            (aside.name, epoch, cause, now_us, exact),
        )
        for table in CARRIED:
            with suppress(sqlite3.Error):  # then they begin anew
                _carry(connection, aside, table)


def forget(connection: sqlite3.Connection, store: Path) -> None:
    """Remove what is read to its end beyond KEPT_MAX, and the rows of what somebody removed."""
    there = kept(store)
    rows = connection.execute("SELECT name, state FROM salvages ORDER BY at_us, name").fetchall()
    names = {path.name for path in there}
    for name, state in rows:
        if state == "done" and len(names) > KEPT_MAX and name in names:
            for part in ("", *_PARTS):
                store.with_name(name + part).unlink(missing_ok=True)
            names.discard(name)
        if state == "done" and name not in names:
            connection.execute("DELETE FROM salvages WHERE name = ?", (name,))


def _carry(connection: sqlite3.Connection, aside: Path, table: str) -> None:
    if not aside.exists():
        return
    wreck = sqlite3.connect(aside)
    try:
        rows = wreck.execute(f"SELECT * FROM {table}").fetchall()
    finally:
        wreck.close()
    for row in rows:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)


def sync(path: Path) -> None:
    """A file's content, or what was renamed in a folder, outlasts a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
