"""Damage to a store's file that SQLite meets: each kind says in a sentence what it did.

What is hit is found at run time, by the name of its table, in the file as it lies (so a WAL should
have been checkpointed into it); where there are several, `chance` chooses. Bytes are turned over,
every bit of them, so that none stays as it was.
"""

import random
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

INTERIOR, LEAF, OVERFLOW = "interior", "leaf", "overflow"
INDEX_INTERIOR, TABLE_INTERIOR, INDEX_LEAF, TABLE_LEAF = 2, 5, 10, 13
HEADER_BYTES = 100  # of the file, on page 1
SCARRED_BYTES = 64  # turned over where a page's own header and the places of its rows are
READ_AT_OPEN = [0, 15, 19, 21, 47, 56]  # the name, a version, a constant, the schema's, the text's
Damage = Callable[[Path, random.Random], str]


def flip(path: Path, at: int, count: int = 1) -> str:
    """Turn over `count` bytes of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(count)
        assert len(old) == count, f"{path.name} ends before byte {at + count}"
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in old))
    return f"{count} bytes turned over in {path.name} at byte {at}"


def header(db: Path, chance: random.Random) -> str:
    """A byte in the file's header."""
    return f"the header: {flip(db, chance.choice(READ_AT_OPEN))}"


def schema(db: Path, chance: random.Random) -> str:
    """What page 1 holds of the schema."""
    return f"the schema: {flip(db, HEADER_BYTES, SCARRED_BYTES)}"


def leaf(table: str) -> Damage:
    """A page of a table's rows, its page header: what reads there fails."""
    return lambda db, chance: _scar(db, chance, table, LEAF)


def interior(table: str) -> Damage:
    """A page above a table's rows: all that it leads to cannot be found."""
    return lambda db, chance: _scar(db, chance, table, INTERIOR)


def overflow(table: str) -> Damage:
    """The rest of a long row: it is read without a complaint, and is another."""

    def damage(db: Path, chance: random.Random) -> str:
        page = _chosen(db, chance, table, OVERFLOW)
        at = _start(db, page) + 4  # behind the number of the next page
        return f"{table}, overflow page {page}: {flip(db, at, SCARRED_BYTES)}"

    return damage


def frame(wal: Path, chance: random.Random) -> str:
    """A frame of the WAL with at least one transaction behind its own."""
    data = wal.read_bytes()
    step = 24 + int.from_bytes(data[8:12])
    starts = [
        at for at in range(32, len(data) - step + 1, step) if data[at + 8 :][:8] == data[16:24]
    ]
    ends = [at for at in starts if any(data[at + 4 : at + 8])]
    assert len(ends) > 1, f"{wal.name} holds {len(ends)} transactions"
    at = chance.choice([at for at in starts if at <= ends[-2]])
    return f"frame {(at - 32) // step}: {flip(wal, at + 24 + chance.randrange(step - 24))}"


def truncate(path: Path, share: float) -> str:
    """Cut a file off at this share of its length; 0 leaves nothing of it."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(size * share))
    return f"{path.name} cut off at byte {int(size * share)} of {size}"


def garbage(path: Path, chance: random.Random) -> str:
    """A file of the same length with nothing in it that makes sense."""
    size = path.stat().st_size
    path.write_bytes(chance.randbytes(size))
    return f"{size} bytes of garbage in {path.name}"


def _scar(db: Path, chance: random.Random, table: str, kind: str) -> str:
    page = _chosen(db, chance, table, kind)
    at = _start(db, page) + (HEADER_BYTES if page == 1 else 0)
    return f"{table}, {kind} page {page}: {flip(db, at, SCARRED_BYTES)}"


def _chosen(db: Path, chance: random.Random, table: str, kind: str) -> int:
    found = [page for page, is_a in pages(db, table) if is_a == kind]
    assert found, f"{table} has no {kind} page in {db.name}"
    return chance.choice(found)


def _start(db: Path, page: int) -> int:
    with db.open("rb") as file:
        return (page - 1) * _page_bytes(file.read(HEADER_BYTES))


def _page_bytes(head: bytes) -> int:
    size = int.from_bytes(head[16:18])
    return 65536 if size == 1 else size


def pages(db: Path, table: str) -> list[tuple[int, str]]:
    """Every page of a table's own b-tree, none of its indexes: its number and what it is."""
    with closing(sqlite3.connect(f"file:{db}?immutable=1", uri=True)) as connection:
        sql = "SELECT rootpage FROM sqlite_schema WHERE name = ? AND type = 'table'"
        (root,) = connection.execute(sql, (table,)).fetchone()
    return list(_below(db.read_bytes(), root))


def _below(data: bytes, page: int) -> Iterator[tuple[int, str]]:
    """This page of a b-tree and all below it."""
    size = _page_bytes(data)
    start = (page - 1) * size
    head = start + (HEADER_BYTES if page == 1 else 0)
    kind, count = data[head], int.from_bytes(data[head + 3 : head + 5])
    is_interior = kind in (INDEX_INTERIOR, TABLE_INTERIOR)
    yield page, INTERIOR if is_interior else LEAF
    places = head + (12 if is_interior else 8)
    for (place,) in struct.iter_unpack(">H", data[places : places + 2 * count]):
        cell = start + place
        if is_interior:
            yield from _below(data, int.from_bytes(data[cell : cell + 4]))
            cell += 4
        if kind != TABLE_INTERIOR:
            yield from _overflow(data, cell, size - data[20], kind == TABLE_LEAF)
    if is_interior:
        yield from _below(data, int.from_bytes(data[head + 8 : head + 12]))


def _overflow(data: bytes, cell: int, usable: int, is_table: bool) -> Iterator[tuple[int, str]]:
    """The pages that hold what of a row does not fit into its cell."""
    length, at = _varint(data, cell)
    if is_table:
        _, at = _varint(data, at)  # the rowid
    most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
    if length <= most:
        return
    least = (usable - 12) * 32 // 255 - 23
    local = least + (length - least) % (usable - 4)
    at += local if local <= most else least
    while page := int.from_bytes(data[at : at + 4]):
        yield page, OVERFLOW
        at = (page - 1) * _page_bytes(data)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's, and where it ends."""
    value = 0
    for position in range(at, at + 8):
        value = value << 7 | data[position] & 0x7F
        if data[position] < 0x80:
            return value, position + 1
    return value << 8 | data[at + 8], at + 9


def xor(path: Path, at: int, bits: int) -> str:
    """Turn over these bits of one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ bits]))
    return f"byte {at} of {path.name} turned from {old} to {old ^ bits}"
