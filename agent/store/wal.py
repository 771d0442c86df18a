"""The WAL, judged before SQLite opens it: whether something that was whole in it no longer is.

SQLite ends its recovery without a word at the first frame that is not right. Where that frame is
damaged, and not the torn end of a transaction that was never promised, committed transactions
behind it are gone, and pages that a checkpoint has moved since are written over with older ones.

Limits  : needs synchronous=FULL, sectors of 512 bytes or more that are written whole or not at
          all, and a disk that keeps what it synced. A table of 37 bytes a frame stands in memory.
Format  : SQLite's: a header of 32 bytes, then frames of 24 bytes and a page. A frame's checksum
          goes on from the frame before; `salts` in each tell the header's generation from older
          ones. The checksum (s0 += x + s1; s1 += y + s0 for each two words) is a sum of the words
          weighted with Fibonacci numbers mod 2^32, so one product does all frames at once.
Told    : a transaction is synced before the next one is written. So where the first frame that is
          not right is followed by a commit and, right behind, a frame whose checksum goes on from
          that commit's, everything up to the commit had been whole: it is damaged. No other frames
          prove it: after a torn transaction or a rollback SQLite writes on from the last commit
          with the same salts, and behind that, the remains of several attempts may lie mixed; but
          none of those had a successor. And a new header is synced before the first frame behind
          it is written, so with room for a frame behind it, it is right or damaged.
Not told: whatever befalls the last transaction alone, and a WAL that was cut off or wiped behind a
          transaction's end or in the last one: a power cut leaves the same. The same goes for the
          commit just before the last transaction where its frame's header is lost, or no longer
          calls it a commit: the two look like one that is torn. (A single flipped byte of that
          frame is told, but for a few that could as well be a torn sector.)
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Flags = NDArray[np.bool_]
HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
PAGE_BYTES_MIN, PAGE_BYTES_MAX = 512, 65536
COMMIT_WORD = 1  # of a frame: how large the file is after the commit, or 0
SECTOR_BYTES = 512
READ_BYTES = 1 << 20
MAGIC = 0x377F0682  # its last bit: the checksums run over big-endian words


def damage(wal: Path) -> str | None:
    """What is damaged in a WAL that nobody has open, and at which byte; None where nothing is.

    Syncs the file first: SQLite takes what a killed process had written for committed, synced or
    not, and goes on behind it. Raises OSError.
    """
    try:
        file = wal.open("rb")
    except FileNotFoundError:
        return None
    with file:
        os.fsync(file.fileno())
        head = file.read(HEADER_BYTES)
        frames_bytes = os.fstat(file.fileno()).st_size - HEADER_BYTES
        if frames_bytes < FRAME_HEADER_BYTES + PAGE_BYTES_MIN:
            return None
        if not _sound(head):
            return f"{wal}: its header, at byte 0, is damaged: {frames_bytes} bytes lie behind it"
        log = _read(file, head, frames_bytes)
    found = _proof(log)
    if found is None:
        return None
    broken, later = (log.start(frame) for frame in found)
    return (
        f"{wal}: the frame at byte {broken} is damaged: the transaction at byte {later} was"
        " written after it had been whole"
    )


@dataclass(frozen=True)
class _Log:
    """The frames, a row each, but for their pages."""

    page_bytes: int
    commit: Words  # 0 in a frame that commits nothing; in the order of bytes that is summed up
    salted: Flags  # of the header's generation
    sums: Words  # the checksums as they stand, two words each; row 0 is the header's
    content: Words  # what the frame's own words add to its checksum

    def start(self, frame: int) -> int:
        """The byte where a frame begins."""
        return HEADER_BYTES + frame * (FRAME_HEADER_BYTES + self.page_bytes)

    def expected(self, sums: Words, first: int, last: int) -> Words:
        """The checksums of frames `first` to before `last`, if those before them had `sums`."""
        _, seeds = _weights(2 + self.page_bytes // 4)
        return cast(Words, sums @ seeds + self.content[first:last])


def _proof(log: _Log) -> tuple[int, int] | None:
    """The first frame that is not right, and one written only after it had been: or None."""
    count = len(log.commit)
    if count < 2:
        return None
    linked: Flags = (log.expected(log.sums[:-1], 0, count) == log.sums[1:]).all(axis=1)
    right = linked & log.salted
    broken = int(np.argmin(right))
    if right[broken] or broken + 1 == count:
        return None
    here, behind = slice(broken, broken + 1), slice(broken + 1, broken + 2)
    computed = log.expected(log.sums[here], broken, broken + 1)
    is_whole = bool(linked[broken])  # but for its salts
    if (log.expected(computed, broken + 1, broken + 2) == log.sums[behind.start + 1]).all():
        is_whole = True  # but for its checksum
        right[behind] = log.salted[behind]
    commits = right & (log.commit != 0)
    commits[broken] = log.commit[broken] != 0 if is_whole else _committed(log, broken, computed)
    proofs = commits[broken:-1] & right[broken + 1 :]
    return (broken, broken + 1 + int(np.argmax(proofs))) if proofs.any() else None


def _committed(log: _Log, frame: int, computed: Words) -> bool:
    """Whether a frame whose words are not what its checksum says was a commit.

    Where a single word changed, it mostly shows which. Otherwise the commit field is believed if it
    lies in one sector with the checksum: in two, one may be left of an older frame.
    """
    lacks = _lacks(log.page_bytes, log.sums[frame + 1] - computed[0])
    if list(lacks) == [COMMIT_WORD]:
        return (int(log.commit[frame]) + lacks[COMMIT_WORD]) % 2**32 != 0
    if lacks and COMMIT_WORD not in lacks:
        return bool(log.commit[frame])
    start = log.start(frame) % SECTOR_BYTES
    return start + FRAME_HEADER_BYTES <= SECTOR_BYTES and bool(log.commit[frame])


def _lacks(page_bytes: int, difference: Words) -> dict[int, int]:
    """Each word that alone would put the checksum right, and what it lacks for that."""
    weights, _ = _weights(2 + page_bytes // 4)
    is_odd = weights[:, 0] % 2 == 1  # one of two neighbours is
    odd = np.where(is_odd, weights[:, 0], weights[:, 1])
    inverse = odd.copy()  # right in 3 bits, and each step doubles them
    for _ in range(4):
        inverse *= 2 - odd * inverse
    lacks = np.where(is_odd, difference[0], difference[1]) * inverse
    found = np.flatnonzero((weights * lacks[:, None] == difference).all(axis=1))
    return {int(word): int(lacks[word]) for word in found}


@cache
def _weights(count: int) -> tuple[Words, Words]:
    """What each of `count` words, and the two of the checksum before, add to the checksum."""
    fibonacci = [0, 1]
    while len(fibonacci) < count + 2:
        fibonacci.append((fibonacci[-1] + fibonacci[-2]) % 2**32)
    numbers = np.array(fibonacci, np.uint32)
    pairs = np.stack([numbers[:-1], numbers[1:]], axis=1)
    return pairs[count - 1 :: -1], pairs[count - 1 : count + 1]


def _sound(head: bytes) -> bool:
    """Whether SQLite would believe this header."""
    magic, _, page_bytes, *_ = np.frombuffer(head, ">u4").tolist()
    if magic | 1 != MAGIC | 1 or page_bytes & (page_bytes - 1):
        return False
    if not PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX:
        return False
    weights, _ = _weights(6)
    added = _words(head, magic)[:6] @ weights
    return bool((added == np.frombuffer(head, ">u4")[6:]).all())


def _words(data: bytes, magic: int) -> Words:
    """The words that are summed up, in the order of bytes that the magic names."""
    return np.frombuffer(data, ">u4" if magic & 1 else "<u4").astype(np.uint32, copy=False)


def _read(file: BinaryIO, head: bytes, frames_bytes: int) -> _Log:
    """The frames of a file that is open behind its header; a part of a frame at its end is none."""
    magic, _, page_bytes, _, *salts = np.frombuffer(head, ">u4")[:6].tolist()
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    count = frames_bytes // frame_bytes
    weights, _ = _weights(2 + page_bytes // 4)
    commit, salted = np.zeros(count, np.uint32), np.zeros(count, np.bool_)
    sums, content = np.zeros((count + 1, 2), np.uint32), np.zeros((count, 2), np.uint32)
    sums[0] = np.frombuffer(head, ">u4")[6:]
    step = max(1, READ_BYTES // frame_bytes)
    for first in range(0, count, step):
        data = file.read(min(step, count - first) * frame_bytes)
        here = slice(first, first + len(data) // frame_bytes)
        fields = np.frombuffer(data, ">u4").reshape(-1, frame_bytes // 4)[:, :6]
        words = _words(data, magic).reshape(-1, frame_bytes // 4)
        commit[here] = words[:, COMMIT_WORD]
        salted[here] = (fields[:, 2:4] == salts).all(axis=1)
        sums[first + 1 : here.stop + 1] = fields[:, 4:6]
        content[here] = words[:, :2] @ weights[:2] + words[:, 6:] @ weights[2:]
    return _Log(page_bytes, commit, salted, sums, content)
