"""The acknowledgement: what the far side's database holds of a device.

It is whole and cumulative: none is missed, and an older one behind a newer takes nothing back. It
is published retained, so a device that comes back reads it at once.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.protocol.envelope import from_json
from agent.records import Range
from agent.words import quoted

BYTES_MAX = 1 << 20
STREAMS_MAX = 1000
RANGES_MAX = 1000
PARTS_MAX = 100
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class StreamAck(Struct, frozen=True, omit_defaults=True):
    """Of one stream: every seq up to `mark`, and the ranges above it, are stored with their blobs.

    `parts` says of blobs that are begun how many bytes from their start are there. `refused` are
    ranges that came and cannot be stored: the device keeps them as dead letters. `dead` are those
    up to the mark, or in `ranges`, that the device told to be dead letters, and that never came:
    all of them. Where there are too many, `mark` and `ranges` say less than is stored: they speak
    of the stretches in `listed` alone, which differ from ack to ack (empty: of every seq). `tail`
    is a seq, the highest known of those stored up to the mark, and the digest (records.digest) of
    its record: a device that holds another there takes nothing of the ack.
    """

    mark: Number = 0
    ranges: list[Range] = []
    parts: dict[Number, Number] = {}
    refused: list[Range] = []
    dead: list[Range] = []
    tail: tuple[Number, Digest] | None = None
    listed: list[Range] = []


class Ack(Struct, frozen=True):
    """What is stored of a device: by epoch, then by stream."""

    epochs: dict[str, dict[str, StreamAck]]


def encode(ack: Ack) -> bytes:
    """The ack as JSON."""
    return msgspec.json.encode(ack)


def decode(payload: bytes) -> Ack:
    """JSON as an ack, its bounds checked. Raises ProtocolError."""
    if len(payload) > BYTES_MAX:
        raise ProtocolError(f"an ack of {len(payload)} bytes; expected {BYTES_MAX} at most")
    ack = from_json(payload, Ack)
    count = sum(len(streams) for streams in ack.epochs.values())
    if count > STREAMS_MAX:
        raise ProtocolError(f"an ack of {count} streams; expected {STREAMS_MAX} at most")
    if "" in ack.epochs or any("" in streams for streams in ack.epochs.values()):
        raise ProtocolError("an ack of an epoch or a stream without a name")
    for streams in ack.epochs.values():
        for name, stream in streams.items():
            _check(name, stream)
    return ack


def _check(name: str, stream: StreamAck) -> None:
    all_lists = [stream.ranges, stream.refused, stream.dead, stream.listed]
    if max(map(len, all_lists)) > RANGES_MAX or len(stream.parts) > PARTS_MAX:
        raise ProtocolError(
            f"the ack of {quoted(name)} lists too much", "fewer ranges, a higher mark"
        )
    if any(not 1 <= r.first <= r.last < 2**63 for ranges in all_lists for r in ranges):
        raise ProtocolError(f"the ack of {quoted(name)} has a range that is none")
