"""What is kept and sent: the shapes that the parts hand to each other."""

import zlib
from enum import StrEnum
from typing import Literal

from msgspec import Struct

RATE_HZ = 16_000  # every sample inside Holdfast: 16 kHz, mono, signed 16 bit
SEQ_BITS = 40
SEQ_MAX = (1 << SEQ_BITS) - 1  # of a stream: a thousand a second for 34 years


class Stamp(Struct, frozen=True, gc=False):
    """When a record was made: boot id, monotonic nanoseconds in that boot, wall microseconds."""

    boot: str
    mono_ns: int
    wall_us: int


class RecordType(StrEnum):
    """The kinds of record; the value is the CloudEvents type."""

    SEGMENT = "holdfast.segment.v1"
    RAW = "holdfast.raw.v1"
    WATCHDOG = "holdfast.watchdog.v1"
    COMMAND = "holdfast.command.v1"
    SUPPORT = "holdfast.support.v1"


class Take(Struct, frozen=True):
    """One uninterrupted recording of a source: a file, or the time a live source ran.

    `samples` is how far it has been accepted into the store; `durability` is the class of the
    commit that did it last, `commit_s` what that took, in seconds.
    """

    id: int
    source: str
    name: str
    samples: int = 0
    ended: bool = False
    durability: str = ""
    commit_s: float = 0.0


class Raw(Struct, frozen=True):
    """Body of a raw record: samples [offset, offset + samples) of a take; its PCM is the blob."""

    take: int
    name: str
    offset: int
    samples: int
    end: bool = False


class Segment(Struct, frozen=True):
    """Body of a segment record: one bounded stretch of speech; its FLAC is the blob.

    `start` and `samples` count samples at `rate_hz` from the start of the take. `speech` is the
    mean speech probability, `heard_us` the wall label of its first raw audio. `sha256` and
    `size_bytes` are of the FLAC. `model` and `ep` say what denoised it, on which provider.
    """

    id: str
    source: str
    take: int
    name: str
    start: int
    samples: int
    speech: float
    heard_us: int
    model: str
    ep: str
    sha256: str
    size_bytes: int
    rate_hz: int = RATE_HZ
    codec: str = "flac"


class Upload(Struct, frozen=True):
    """Body of a support record: an archive that `command` has ordered; it is the blob."""

    what: Literal["log", "support"]
    name: str
    sha256: str
    size_bytes: int
    command: str
    codec: str = "tar.gz"


class Key(Struct, frozen=True, gc=False):
    """The store's own name of a record: the epoch of the file, the stream's row, its blob."""

    epoch: str
    stream: int
    blob: int


class Record(Struct, frozen=True, gc=False):
    """One row of a stream as the store gives it out; `body` is JSON, its blob has `blob_bytes`.

    `key` says where it lies. `timebound`: the stamp's wall time is UTC by a synchronised clock, be
    it that it was so only later in that boot.
    """

    stream: str
    seq: int
    type: str
    stamp: Stamp
    body: bytes
    blob_bytes: int = 0
    key: Key = Key("", 0, 0)
    timebound: bool = False


def digest(body: bytes) -> int:
    """A record's body in 32 bits (CRC-32), by which two that have the same seq are told apart.

    White space around the JSON does not count: it does not outlast the way to the far side.
    """
    return zlib.crc32(body.strip(b" \t\r\n"))


class Position(Struct, frozen=True):
    """How far a source's raw audio has become segments, and all it takes to go on from there.

    Samples of `take` before `floor` are done; when a segment was cut there and goes on,
    `spoken_until` is where its speech had ended by then, else -1. Raw records from `next_seq` on
    are still needed; `memory` is what `model` remembered at the first sample of that one.
    """

    take: int = 0
    floor: int = 0
    spoken_until: int = -1
    next_seq: int = 1
    model: str = ""
    memory: bytes = b""


class Range(Struct, frozen=True, array_like=True):
    """Sequence numbers first..last, both included."""

    first: int
    last: int


class Drop(Struct, frozen=True, array_like=True):
    """A range of seqs that will never come, and why."""

    first: int
    last: int
    reason: str


class Balance(Struct, frozen=True):
    """The ledger of one stream (promise 2): produced = delivered + held + the sum of dropped."""

    produced: int
    delivered: int
    held: int
    dropped: dict[str, int]

    @property
    def balanced(self) -> bool:
        """Whether the equation holds."""
        return self.produced == self.delivered + self.held + sum(self.dropped.values())

    def plus(self, other: "Balance") -> "Balance":
        """Both in one."""
        reasons = [
            *self.dropped,
            *(reason for reason in other.dropped if reason not in self.dropped),
        ]
        return Balance(
            self.produced + other.produced,
            self.delivered + other.delivered,
            self.held + other.held,
            {one: self.dropped.get(one, 0) + other.dropped.get(one, 0) for one in reasons},
        )


def segments_stream(source: str) -> str:
    """Name of the stream that carries a source's segments."""
    return f"{source}.segments"


def raw_stream(source: str) -> str:
    """Name of the stream that carries a source's raw audio."""
    return f"{source}.raw"
