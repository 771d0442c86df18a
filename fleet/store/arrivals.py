"""Messages taken apart: what each stream is brought, and what makes no sense.

Limits  : names of devices, epochs and streams are short and can be printed; a blob has
          BLOB_BYTES_MAX at most. What breaks a bound is refused, with a cause.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct

from agent.errors import ProtocolError
from agent.protocol import batch, blob, grants
from agent.protocol.grants import Ask
from agent.records import SEQ_MAX, Drop

NAME_CHARS_MAX = 200
BLOB_BYTES_MAX = 1 << 30
EVENT_BYTES = 1000  # of an event in memory beside its data, as measured
DROP_BYTES = 300  # of a dropped range

Name = tuple[str, str, str]  # device, epoch, stream


class Arrival(Struct, frozen=True):
    """A message from MQTT or from a stick."""

    topic: str
    payload: bytes


class Refusal(Struct, frozen=True):
    """What cannot be stored, and why. With a `name`, its seqs `first` to `last` are meant.

    `conflict`: other records are stored under seqs that the device gave out twice. It is not told
    that they are refused: it keeps them, as it keeps all that no ack names.
    """

    topic: str
    cause: str
    payload: bytes
    device: str = ""
    name: Name | None = None
    first: int = 0
    last: int = 0
    conflict: bool = False

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.payload)

    @property
    def digest(self) -> str:
        """The same thing refused twice has the same one."""
        return hashlib.sha256(self.cause.encode() + self.payload).hexdigest()


class Put(Struct, frozen=True):
    """The blob that was asked about was seen in the object store, at the URL `place`."""

    ask: Ask
    place: str


class Brought(Struct, frozen=True):
    """What one arrival brings to a stream. `before` is as in batch.Header."""

    arrival: Arrival
    name: Name
    events: Sequence[batch.Event] = ()
    drops: Sequence[Drop] = ()
    live: bool = False
    piece: tuple[blob.Header, bytes] | None = None
    put: Put | None = None
    before: int | None = None

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        plain = sum(len(event.data) for event in self.events)
        many = EVENT_BYTES * len(self.events) + DROP_BYTES * len(self.drops)
        return len(self.arrival.payload) + plain + many


def take_apart(prefix: str, arrival: Arrival) -> Brought | Refusal:
    """What an arrival brings; or why it is none."""
    device = ""
    try:
        device, door, stream = _topic(prefix, arrival.topic)
        if door == "up":
            return _batch(arrival, device, stream)
        if door == "blob":
            return _piece(arrival, device, stream)
        if door == "blob-ask":
            asked(prefix, arrival.topic, arrival.payload)
        raise ProtocolError(f"nothing is expected at {arrival.topic!r}")
    except ProtocolError as error:
        return Refusal(arrival.topic, str(error), arrival.payload, device)


def asked(prefix: str, topic: str, payload: bytes) -> tuple[str, Ask]:
    """The device, and what it asks, at its door `blob-ask`. Raises ProtocolError."""
    device, ask = device_of(prefix, topic), grants.decode_ask(payload)
    if not grants.fits_key(device):
        raise ProtocolError(f"the device {device!r} asks where a blob goes; no key can begin so")
    for name in (ask.epoch, ask.stream):
        _check_name(name)
    _check_blob(ask)
    return device, ask


def device_of(prefix: str, topic: str) -> str:
    """The device that a topic belongs to. Raises ProtocolError."""
    return _topic(prefix, topic)[0]


def door_of(prefix: str, topic: str) -> str:
    """The door of a topic `prefix/device/door` or `prefix/device/door/stream`; "": it has none."""
    with suppress(ProtocolError):
        return _topic(prefix, topic)[1]
    return ""


def _topic(prefix: str, topic: str) -> tuple[str, str, str]:
    """Device, door and stream, this one folded."""
    root, rest = topic[: len(prefix) + 1], topic[len(prefix) + 1 :]
    parts = rest.split("/")
    if _folded(root) != _folded(f"{prefix}/") or len(parts) < 2:
        raise ProtocolError(f"the topic {topic[:NAME_CHARS_MAX]!r} is none of {prefix}/#")
    for part in parts:
        _check_name(part)
    device, door, *stream = parts
    return device, door, _folded("/".join(stream))


def _folded(name: str) -> str:
    """RabbitMQ makes a slash of each dot of a topic."""
    return name.replace(".", "/")


def is_name(name: str) -> bool:
    """Whether a device, an epoch or a stream may be called so."""
    return 0 < len(name) <= NAME_CHARS_MAX and name.isprintable() and not set(name) & set("/+#")


def plain(text: str, chars_max: int = NAME_CHARS_MAX) -> str:
    """Text from outside as every database takes it, and every terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:chars_max])


def _check_name(name: str) -> None:
    if not is_name(name):
        raise ProtocolError(
            f"{name[:NAME_CHARS_MAX]!r} is no name of a device, an epoch or a stream: it has "
            f"1 to {NAME_CHARS_MAX} printable characters without / + #"
        )


def _check_origin(header: batch.Header | blob.Header, device: str, stream: str) -> Name:
    _check_name(header.epoch)
    _check_name(header.stream)
    if (header.device, _folded(header.stream)) != (device, stream):
        raise ProtocolError(
            f"it says it is of {header.device!r}, {header.stream!r}, "
            f"and came on the topic of {device!r}, {stream!r}"
        )
    return device, header.epoch, header.stream


def _batch(arrival: Arrival, device: str, stream: str) -> Brought:
    header, events = batch.decode(arrival.payload)
    name = _check_origin(header, device, stream)
    seqs = [event.sequence for event in events]
    if seqs and not (seqs[0] >= 1 and seqs[-1] <= SEQ_MAX and seqs == sorted(set(seqs))):
        raise ProtocolError(
            f"the batch's records are not in ascending order of seq, from 1 to {SEQ_MAX}"
        )
    for drop in header.dropped:
        if not 1 <= drop.first <= drop.last <= SEQ_MAX:
            raise ProtocolError(f"the dropped range {drop.first} to {drop.last} is none")
        _check_name(drop.reason)
    if not events and not header.dropped:
        raise ProtocolError("the batch is empty")
    return Brought(arrival, name, events, header.dropped, live=header.live, before=header.before)


def _piece(arrival: Arrival, device: str, stream: str) -> Brought:
    header, content = blob.decode(arrival.payload)
    name = _check_origin(header, device, stream)
    _check_blob(header)
    return Brought(arrival, name, piece=(header, content))


def _check_blob(of: blob.Header | Ask) -> None:
    if not 1 <= of.seq <= SEQ_MAX or of.size > BLOB_BYTES_MAX:
        raise ProtocolError(
            f"a blob of {of.size} bytes for seq {of.seq}; "
            f"expected {BLOB_BYTES_MAX} bytes at most and a seq of 1 to {SEQ_MAX}"
        )
