"""The acknowledgement: what the far side's database holds of one epoch of a device.

It is whole and cumulative, so the last one counts and none is missed; it is published retained, so
a device that comes back reads it at once.
"""

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError
from agent.protocol.envelope import from_json
from agent.records import Range

RANGES_MAX = 1000
PARTS_MAX = 100


class StreamAck(Struct, frozen=True, omit_defaults=True):
    """Of one stream: every seq up to `mark`, and the ranges above it, are stored with their blobs.

    `parts` says of blobs that are begun how many bytes from their start are there.
    """

    mark: int = 0
    ranges: list[Range] = []
    parts: dict[int, int] = {}


class Ack(Struct, frozen=True):
    """What is stored of one epoch, by stream."""

    epoch: str
    streams: dict[str, StreamAck]


def encode(ack: Ack) -> bytes:
    """The ack as JSON."""
    return msgspec.json.encode(ack)


def decode(payload: bytes) -> Ack:
    """JSON as an ack, its bounds checked. Raises ProtocolError."""
    ack = from_json(payload, Ack)
    for name, stream in ack.streams.items():
        if len(stream.ranges) > RANGES_MAX or len(stream.parts) > PARTS_MAX:
            raise ProtocolError(f"the ack of {name} lists too much", "fewer ranges, a higher mark")
        if stream.mark < 0 or any(r.first < 1 or r.last < r.first for r in stream.ranges):
            raise ProtocolError(f"the ack of {name} has a range that is none")
    return ack
