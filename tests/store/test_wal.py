"""Real WALs of real SQLite, with every kind of damage, and with all that a power cut may leave."""

import random
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agent.store import wal

SECTOR = 512
PAGES = [512, 1024, 4096]  # of the smallest, headers often lie across two sectors


class Made:
    """A database with its WAL: `ends` is the byte behind each transaction, 32 first."""

    def __init__(self, folder: Path, page: int) -> None:
        self.db, self.wal = folder / "a.db", folder / "a.db-wal"
        self.page, self.ends = page, [32]

    @property
    def data(self) -> bytes:
        return self.wal.read_bytes()

    def frame(self, at: int) -> int:
        """The byte where the frame of this byte begins."""
        return at - (at - 32) % (self.page + 24)


@contextmanager
def connected(db: Path, page: int = 4096) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {page}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA cache_size = 20")  # larger transactions spill into the WAL
        connection.execute("CREATE TABLE IF NOT EXISTS t (number, body)")
        yield connection


def transact(connection: sqlite3.Connection, number: int, size: int, chance: random.Random) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (?, ?)", (number, chance.randbytes(size)))
    connection.execute("UPDATE t SET body = zeroblob(9) WHERE number = ? - 3", (number,))
    connection.execute("COMMIT")


def live_bytes(data: bytes) -> int:
    """Where the last frame of the header's generation ends."""
    page = struct.unpack_from(">I", data, 8)[0]
    end = 32
    while end + 24 + page <= len(data) and data[end + 8 : end + 16] == data[16:24]:
        end += 24 + page
    return end


def made(folder: Path, page: int, seed: int, restart: bool = False) -> Made:
    """Twelve transactions of one frame to many; `restart` leaves older frames behind them."""
    folder.mkdir(exist_ok=True)
    source, kept = Made(folder / "open", page), Made(folder, page)
    source.db.parent.mkdir()
    chance = random.Random(seed)
    with connected(source.db, page) as connection:
        for number in range(40) if restart else ():
            transact(connection, 100 + number, page, chance)
        connection.execute(f"PRAGMA wal_checkpoint({'RESTART' if restart else 'TRUNCATE'})")
        for number in range(1, 13):
            size = chance.choice([1, 20, page, 3 * page, 30 * page if page < 4096 else 1])
            transact(connection, number, size, chance)
            kept.ends.append(live_bytes(source.data))
        shutil.copy(source.db, kept.db)
        shutil.copy(source.wal, kept.wal)
    return kept


@pytest.fixture(params=[(p, r) for p in PAGES for r in (False, True)], ids=str)
def found(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    page, restart = request.param
    return made(tmp_path / "made", page, page, restart)


def tampered(found: Made, folder: Path, data: bytes) -> Made:
    """A copy with this for its WAL."""
    folder.mkdir(exist_ok=True)
    other = Made(folder, found.page)
    shutil.copy(found.db, other.db)
    other.wal.write_bytes(data)
    return other


def recovered(found: Made) -> int:
    """How many transactions SQLite finds."""
    with closing(sqlite3.connect(found.db)) as connection:
        rows = connection.execute("SELECT number FROM t WHERE number < 100").fetchall()
    return max((row[0] for row in rows), default=0)


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def unmade(found: Made, data: bytes) -> bool:
    """Whether the last commit but one does not say any more that it is one: the one flip that, in
    a small file, can look as a torn transaction does."""
    start = found.ends[-2] - found.page - 24
    return not any(data[start + 4 : start + 8])


def test_a_whole_wal_is_not_told(found: Made, tmp_path: Path) -> None:
    assert wal.damage(found.wal) is None
    assert recovered(found) == 12
    assert wal.damage(tmp_path / "none-wal") is None


def test_any_flip_before_the_last_transaction_is_told(found: Made, tmp_path: Path) -> None:
    data, chance = found.data, random.Random(found.page)
    starts = range(32, found.ends[-2], found.page + 24)
    fields = [start + field for start in starts for field in range(24)]
    second_to_last = range(found.ends[-3], found.ends[-2])
    contents = [chance.choice(range(found.ends[-2])) for _ in range(60)]
    contents += [chance.choice(second_to_last) for _ in range(100)]
    place = tmp_path / "x-wal"
    for at in [*range(32), *chance.sample(fields, min(150, len(fields))), *contents]:
        for bits in (1 << chance.randrange(8), chance.randint(1, 255)):
            place.write_bytes(hurt := flipped(data, at, bits))
            if unmade(found, hurt):
                continue
            told = wal.damage(place)
            byte = 0 if at < 32 else found.frame(at)
            assert told and f"at byte {byte}" in told, f"byte {at} ^ {bits}: {told}"


def test_a_flip_in_the_last_commit_but_one_is_told(found: Made, tmp_path: Path) -> None:
    """One frame alone links the last transaction to it: each byte of its header counts."""
    data, start, place = found.data, found.ends[-2] - found.page - 24, tmp_path / "x-wal"
    for at in range(start, start + 32):
        for bit in range(8):
            place.write_bytes(hurt := flipped(data, at, 1 << bit))
            assert wal.damage(place) or unmade(found, hurt), f"byte {at}, bit {bit}"


def test_what_sqlite_does_not_see_is_told(found: Made, tmp_path: Path) -> None:
    """Wherever a flip makes SQLite lose more than the last transaction; and it does."""
    data, chance, losses = found.data, random.Random(found.page + 1), 0
    for number in range(40):
        at = chance.randrange(found.ends[-1])
        other = tampered(found, tmp_path / str(number), flipped(data, at, 1 << chance.randrange(8)))
        told = wal.damage(other.wal)
        if recovered(other) < 11:
            losses += 1
            assert told, f"byte {at}"
    assert losses


@pytest.mark.parametrize("fill", ["zeros", "garbage", "flips"])
def test_whatever_befalls_the_last_transaction_alone_is_not_told(
    found: Made, tmp_path: Path, fill: str
) -> None:
    chance, place = random.Random(fill), tmp_path / "x-wal"
    for _ in range(100):
        data = bytearray(found.data)
        first, last = found.ends[-2], found.ends[-1]
        if fill == "flips":
            at = chance.randrange(first, last)
            if (at - 32) % (found.page + 24) == 7:
                continue  # can make a commit of a frame that was none, as no power cut can
            data[at] ^= 1 << chance.randrange(8)
        share = chance.random()
        for start in range(first - first % SECTOR, last, SECTOR):
            if fill != "flips" and chance.random() < share:
                here = slice(max(first, start), min(last, start + SECTOR))
                size = here.stop - here.start
                data[here] = chance.randbytes(size) if fill == "garbage" else bytes(size)
        place.write_bytes(data)
        assert wal.damage(place) is None


@pytest.mark.parametrize("page", [512, 4096])
@pytest.mark.parametrize("seed", range(6))
def test_no_power_cut_is_told(tmp_path: Path, page: int, seed: int) -> None:
    """Cut after cut on one WAL, that keep any of the sectors not yet synced; with transactions
    rolled back after they had spilled, so that the remains of many attempts lie behind the end."""
    chance = random.Random(f"{page} {seed}")
    found = made(tmp_path / "made", page, seed, restart=seed % 2 == 0)
    for cut in range(25):
        folder = tmp_path / str(cut)
        other = tampered(found, folder, found.data)
        with connected(other.db) as connection:
            held = recovered(other)
            for number in range(held + 1, held + chance.randint(1, 3)):
                transact(connection, number, chance.choice([1, page, 9 * page]), chance)
            synced = other.data
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(chance.choice([1, 1, 60])):
                row = (held + 1000, chance.randbytes(chance.choice([1, 5 * page])))
                connection.execute("INSERT INTO t VALUES (?, ?)", row)
            if chance.random() < 0.2:
                connection.execute("ROLLBACK")
            else:
                connection.execute("UPDATE t SET number = ? WHERE number > 999", (held + 3,))
                connection.execute("COMMIT")
            written = other.data
        found = tampered(found, tmp_path / f"{cut} cut", torn(synced, written, chance))
        shutil.rmtree(folder)
        assert wal.damage(found.wal) is None, f"cut {cut}"


def torn(synced: bytes, written: bytes, chance: random.Random) -> bytes:
    """What a power cut leaves of a transaction: of each sector the old or the new."""
    old = synced.ljust(len(written), b"\0")
    keep = chance.choice([0.1, 0.5, 0.9, 0.98])
    left = bytearray(old)
    for start in range(0, len(written), SECTOR):
        if chance.random() < keep:
            left[start : start + SECTOR] = written[start : start + SECTOR]
    return bytes(left)


@pytest.fixture(params=[41, 62])
def across(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The next frame's header lies across two sectors, its first 8 or 16 bytes in the first."""
    with connected(tmp_path / "a.db", 1024) as connection:
        connection.execute("INSERT INTO t VALUES (0, 'x')")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number in range(request.param):
            connection.execute("UPDATE t SET number = ?", (number + 100,))
        start = live_bytes((tmp_path / "a.db-wal").read_bytes())
        assert start == 32 + request.param * 1048
        assert start % SECTOR > SECTOR - 24
        yield connection


def test_a_flip_in_a_frame_that_begins_across_sectors(
    across: sqlite3.Connection, tmp_path: Path
) -> None:
    source, place = tmp_path / "a.db-wal", tmp_path / "x-wal"
    start = live_bytes(source.read_bytes())
    across.execute("UPDATE t SET number = -1")
    across.execute("UPDATE t SET number = -2")
    data = source.read_bytes()
    for at in range(start, start + 1048):
        if at % 4 == 3:
            continue  # the checksum does not show well enough which word it was
        place.write_bytes(flipped(data, at, 1))
        assert wal.damage(place), f"byte {at}"


def test_the_remains_of_an_older_frame_in_a_header_across_sectors(
    across: sqlite3.Connection, tmp_path: Path
) -> None:
    """They may say that a frame of a torn transaction was a commit."""
    source, place = tmp_path / "a.db-wal", tmp_path / "x-wal"
    start = live_bytes(source.read_bytes())
    across.execute("INSERT INTO t VALUES (1, zeroblob(9000))")
    data = source.read_bytes()
    place.write_bytes(data[:start] + struct.pack(">II", 900, 1000) + data[start + 8 :])
    assert wal.damage(place) is None


def test_a_shorter_wal_is_not_told(found: Made, tmp_path: Path) -> None:
    """It looks as if no more had been written."""
    chance, place, data = random.Random(0), tmp_path / "x-wal", found.data
    sizes = [0, 1, 31, 32, 33, 55, 56, 57, *found.ends, *(end - 1 for end in found.ends)]
    for size in [*sizes, *(chance.randrange(len(data)) for _ in range(20))]:
        place.write_bytes(data[:size])
        assert wal.damage(place) is None, f"{size} bytes"


def test_a_header_that_is_lost_is_told_where_frames_lie_behind_it(
    found: Made, tmp_path: Path
) -> None:
    place, data = tmp_path / "x-wal", found.data
    for head in (bytes(32), b"\xff" * 32, random.Random(0).randbytes(32)):
        place.write_bytes(head + data[32:])
        assert wal.damage(place)
        place.write_bytes(head)  # of a new WAL, and the power was cut before it was synced
        assert wal.damage(place) is None


def test_the_largest_pages(tmp_path: Path) -> None:
    found = made(tmp_path / "made", 65536, 3)
    assert wal.damage(found.wal) is None
    found.wal.write_bytes(flipped(found.data, found.ends[-3] + 50_000, 1))
    assert wal.damage(found.wal)


def test_checksums_over_big_endian_words(tmp_path: Path) -> None:
    """As a machine of that order writes them; SQLite here reads them too."""
    found = made(tmp_path / "made", 1024, 7)
    other = tampered(found, tmp_path / "big", big_endian(found.data))
    untouched = tampered(found, tmp_path / "read", other.data)
    assert recovered(untouched) == 12
    assert wal.damage(other.wal) is None
    data, chance = other.data, random.Random(7)
    for _ in range(100):
        other.wal.write_bytes(flipped(data, chance.randrange(found.ends[-2]), 16))
        assert wal.damage(other.wal)


def big_endian(data: bytes) -> bytes:
    """The same WAL, summed up word by word in the other order."""
    out = bytearray(data)
    struct.pack_into(">I", out, 0, 0x377F0683)
    sums = summed(bytes(out[:24]), (0, 0))
    struct.pack_into(">II", out, 24, *sums)
    frame = 24 + struct.unpack_from(">I", data, 8)[0]
    for start in range(32, len(out), frame):
        sums = summed(bytes(out[start : start + 8] + out[start + 24 : start + frame]), sums)
        struct.pack_into(">II", out, start + 16, *sums)
    return bytes(out)


def summed(data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, other in struct.iter_unpack(">II", data):
        first = (first + one + second) % 2**32
        second = (second + other + first) % 2**32
    return first, second
