"""A damaged store file is put aside, never thrown away, and never written to again by producers.

Limits  : KEPT_MAX folders; of those that are read to their end the oldest goes first. Another store
          is adopted only where there is room for twice its size and MARGIN_BYTES.
Format  : `<file>.quarantine/NNNN-<UTC>/`: the store's file, its `-wal` and `.head`, `cause.json`,
          and `report.json` once all that could be saved is; a row of `salvages` each.
Recovery: the folder is called `NNNN-<UTC>.moving` until all is in it, and a crash before that is
          gone on from. One without a row gets it at the next open.
"""

import errno
import os
import shutil
import sqlite3
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.store import head, jobsteps, journalrows
from agent.store.reserve import RESERVE_BYTES

T = TypeVar("T")
KEPT_MAX = 3
MARGIN_BYTES = 2 * RESERVE_BYTES  # what an open store takes beside its file: the reserve, the WAL
CARRIED = ("takes", "boots", "bindings", "job_rates")  # small tables that producers go on with
ALL = ("", "-wal", ".head")
_MOVING = ".moving"
_COPYING = "copying"


class Cause(Struct, frozen=True):
    """Why a file was put aside; `exact`: it knows itself how much was in it."""

    cause: str
    exact: bool
    at_us: int


class PutAside(Struct, frozen=True):
    """What became of a damaged file: how many of its held records were saved, how many lost.

    `state` is waiting, reading or done. Not `exact`: at least so many were lost.
    """

    name: str
    epoch: str
    cause: str
    at_us: int
    state: str
    saved: int
    lost: int
    exact: bool


def place(store: Path) -> Path:
    """The folder of all that was put aside."""
    return store.with_name(f"{store.name}.quarantine")


def put_aside(
    store: Path, cause: str, wall_s: float, *, exact: bool, parts: tuple[str, ...] = ALL
) -> None:
    """Move the store's files away, or those `parts` of them. Raises OSError."""
    moving = place(store) / f"{_next(store, wall_s)}{_MOVING}"
    moving.mkdir(parents=True)
    about = Cause(cause, exact, int(wall_s * 1e6))
    try:
        _write(moving / "cause.json", msgspec.json.encode(about))
    except OSError:
        shutil.rmtree(moving, ignore_errors=True)  # nothing was moved yet
        raise
    _move(store, moving, parts)


def adopt(store: Path, other: Path, cause: str, wall_s: float) -> None:
    """Have another store, which nobody has open, saved into this one: a copy of it is put aside.

    One of an epoch that lies aside already is not copied again. Raises OSError, and leaves nothing
    behind: also where there is no room for all of it twice (the copy, and the rows that are saved
    from it), and MARGIN_BYTES.
    """
    former = head.read(other)
    aside = [head.read(folder / store.name) for folder in kept(store)]
    if former and former.epoch in [one.epoch for one in aside if one]:
        return
    copying = place(store) / _COPYING
    if copying.exists():  # of a crash
        shutil.rmtree(copying)
    copying.mkdir(parents=True)
    try:
        _check_room(other, copying)
        _write(copying / "cause.json", msgspec.json.encode(Cause(cause, True, int(wall_s * 1e6))))
        for part in ALL:
            with suppress(FileNotFoundError):
                copy = shutil.copyfile(f"{other}{part}", copying / f"{store.name}{part}")
                sync(copy)
        sync(copying)
    except OSError:
        shutil.rmtree(copying, ignore_errors=True)  # else the disk would stay full of it
        raise
    copying.rename(place(store) / _next(store, wall_s))
    for folder in (place(store), store.parent):
        sync(folder)


def _check_room(other: Path, folder: Path) -> None:
    """Raises OSError where the folder's disk has too little for what the other store holds.

    Somebody else may take it meanwhile: then the copy itself fails.
    """
    needed = MARGIN_BYTES
    for part in ALL:
        with suppress(FileNotFoundError):
            needed += 2 * Path(f"{other}{part}").stat().st_size
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if free < needed:
        said = f"it needs {needed} bytes of room, and there are {free}"
        raise OSError(errno.ENOSPC, said, str(folder))


def _next(store: Path, wall_s: float) -> str:
    last = max((int(path.name[:4]) for path in place(store).glob("[0-9]*-*")), default=0)
    return f"{last + 1:04}-{datetime.fromtimestamp(wall_s, UTC).strftime('%Y%m%dT%H%M%SZ')}"


def finish(store: Path) -> None:
    """Go on from a crash in the middle of `put_aside`. Raises OSError."""
    for moving in place(store).glob(f"*{_MOVING}"):
        if _read(moving / "cause.json", Cause):
            _move(store, moving, ALL)
        else:  # nothing was moved yet
            shutil.rmtree(moving)


def kept(store: Path) -> list[Path]:
    """The folders of what was put aside, the oldest first."""
    return sorted(path for path in place(store).glob("[0-9]*-*") if path.suffix != _MOVING)


def note(connection: sqlite3.Connection, store: Path) -> None:
    """Give each file that lies aside its row, and carry over what producers go on with."""
    known = {name for (name,) in connection.execute("SELECT name FROM salvages")}
    for folder in kept(store):
        if folder.name in known:
            continue
        report = _read(folder / "report.json", PutAside) or _begun(folder, store)
        connection.execute(
            "INSERT INTO salvages (name, epoch, cause, at_us, state, saved, lost, exact)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            msgspec.structs.astuple(report),
        )
        for table in CARRIED if report.state != "done" else ():
            with suppress(sqlite3.Error):  # then they begin anew
                _carry(connection, folder / store.name, table)
        if report.state != "done" and (folder / store.name).exists():
            with suppress(sqlite3.Error):  # then nobody knows of them any more
                jobsteps.carry(connection, folder / store.name)
            with suppress(sqlite3.Error):  # then a command that comes again is done again
                journalrows.carry(connection, folder / store.name)


def done(store: Path, report: PutAside) -> None:
    """All that could be saved is: whatever befalls the store now, it is not read again."""
    folder = place(store) / report.name
    if folder.exists():
        _write(folder / "report.json", msgspec.json.encode(report))


def forget(connection: sqlite3.Connection, store: Path) -> None:
    """Remove what is read to its end beyond KEPT_MAX, and the rows of what somebody removed."""
    there = [folder.name for folder in kept(store)]
    rows = connection.execute("SELECT name FROM salvages WHERE state = 'done' ORDER BY name")
    for (name,) in rows.fetchall():
        if len(there) > KEPT_MAX and name in there:
            shutil.rmtree(place(store) / name)
            there.remove(name)
        if name not in there:
            connection.execute("DELETE FROM salvages WHERE name = ?", (name,))


def make_room(store: Path) -> None:
    """The disk is full: what is read to its end goes, one folder a call. Raises OSError."""
    for folder in kept(store):
        if (folder / "report.json").exists():
            shutil.rmtree(folder)
            return


def sync(path: Path) -> None:
    """A file's content, or what was renamed in a folder, outlasts a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _move(store: Path, moving: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        with suppress(FileNotFoundError):
            store.with_name(store.name + part).rename(moving / (store.name + part))
    store.with_name(f"{store.name}-shm").unlink(missing_ok=True)
    sync(moving)
    moving.rename(moving.with_suffix(""))
    for folder in (moving.parent, store.parent):
        sync(folder)


def _begun(folder: Path, store: Path) -> PutAside:
    about = _read(folder / "cause.json", Cause) or Cause("its cause cannot be read", False, 0)
    former = head.read(folder / store.name)
    epoch = former.epoch if former else ""
    return PutAside(folder.name, epoch, about.cause, about.at_us, "waiting", 0, 0, about.exact)


def _carry(connection: sqlite3.Connection, path: Path, table: str) -> None:
    if not path.exists():
        return
    wreck = sqlite3.connect(path)
    try:
        rows = wreck.execute(f"SELECT * FROM {table}").fetchall()
    finally:
        wreck.close()
    for row in rows:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync(path)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
