"""What is known of the store's file apart from it: its first page, and how far its streams were.

The first page holds the header and the schema; without it SQLite reads nothing of a file whose
other pages are whole. The streams say what a file that is gone, or too old, must have had.

Limits  : as large as the page and one line a stream; written at open, at close, when a stream
          begins, and every WRITE_S.
Format  : JSON in `<file>.head`, replaced whole and fsynced.
Recovery: one that is missing or damaged is none, and is written anew.
"""

import os
import sqlite3
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.store import schema

WRITE_S = 60.0
PAGE_BYTES = 4096
MAGIC = b"SQLite format 3\0"
# Of SQLite's header (www.sqlite.org/fileformat.html): where, how many bytes, what may be there.
_FIXED = {
    "magic": (0, 16, (int.from_bytes(MAGIC, "big"),)),
    "page size": (16, 2, (PAGE_BYTES,)),
    "write version": (18, 1, (1, 2)),
    "read version": (19, 1, (1, 2)),
    "reserved space": (20, 1, (0,)),
    "payload fractions": (21, 3, (0x402020,)),
    "schema format": (44, 4, (0, 4)),
    "text encoding": (56, 4, (0, 1)),
}
_SIZE_VALID_FOR = slice(92, 96)  # the change counter for which the header's file size is right


class StreamMark(Struct, frozen=True, array_like=True):
    """A stream's row and how far it was."""

    id: int
    epoch: str
    name: str
    produced: int
    delivered: int


class Head(Struct, frozen=True):
    """The whole of it; `version` is the schema's."""

    epoch: str
    version: int
    page: bytes
    streams: list[StreamMark]


def place(store: Path) -> Path:
    """Where a store's head lies."""
    return store.with_name(f"{store.name}.head")


def read(store: Path) -> Head | None:
    """The head beside a store; None where there is no whole one."""
    try:
        return msgspec.json.decode(place(store).read_bytes(), type=Head)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def of(connection: sqlite3.Connection, epoch: str, page: bytes) -> Head:
    """The head of an open store whose first page on the disk is this."""
    rows = connection.execute("SELECT id, epoch, name, produced, delivered FROM streams")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return Head(epoch, version, page, [StreamMark(*row) for row in rows])


def write(store: Path, head: Head) -> None:
    """Put it beside the store, whole or not at all. Raises OSError."""
    fresh = place(store).with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(head))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(place(store))


def strange(page: bytes, known: Head | None) -> str | None:
    """What in a file's first page cannot be; None: nothing, or the file is still empty."""
    if not page:
        return None
    for what, (at, size, values) in _FIXED.items():
        if int.from_bytes(page[at : at + size], "big") not in values:
            return f"its header has a wrong {what}"
    version = int.from_bytes(page[60:64], "big")
    if known and known.version <= len(schema.steps()) < version:
        return "its header has a wrong schema version"
    return None


def behind(connection: sqlite3.Connection, known: Head | None) -> str | None:
    """How a file that opens well is older than what is known of it; None: it is not."""
    if known is None:
        return None
    now = {mark.id: mark for mark in of(connection, known.epoch, b"").streams}
    for mark in known.streams:
        there = now[mark.id].produced if mark.id in now else 0
        if there < mark.produced:
            return f"it ends {mark.name} at {there}, and {mark.produced} were produced"
    return None


def mended(page: bytes) -> bytes:
    """The page as the start of a file that has other sizes by now: SQLite counts the pages."""
    own = bytearray(page)
    own[_SIZE_VALID_FOR] = bytes(4)
    return bytes(own)
