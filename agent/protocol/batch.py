"""A batch: the records of one stream as CloudEvents (JSON batch format), compressed with zstd."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import zstandard
from msgspec import Struct

from agent.errors import ProtocolError
from agent.protocol import envelope
from agent.protocol.ack import Digest
from agent.records import Drop, Record

ZSTD_LEVEL = 1  # faster than the store can be read, and smaller than gzip 1
CONTENT_BYTES_MAX = 16 << 20  # many times what a batch is; what a receiver must have room for
_STEP_BYTES = 1 << 20


class Header(Struct, frozen=True, kw_only=True):
    """Identity of a batch; `dropped` lists the ranges that will not come, up to `last`.

    `first` and `last` are the seqs of its first and last record; without any (count 0), the first
    and last that were dropped. `digest` is the sha256 of the content as it is before compression.
    `live`: these records are fresh, and others of this stream that are older may still wait. A
    range dropped as `dead` is held by the device, as dead letters, and may come some day. `before`
    is the digest (records.digest) of the record with the seq before `first`, if that is held: where
    another is stored there, the batch is of another life of the epoch.
    """

    device: str
    epoch: str
    stream: str
    first: int
    last: int
    count: int
    digest: str
    dropped: list[Drop] = []
    live: bool = False
    before: Digest | None = None
    content: str = "application/cloudevents-batch+json"
    encoding: str = "zstd"


class Event(Struct, frozen=True, kw_only=True, gc=False):
    """One record as a CloudEvent. `sequence` is its seq; `id` its whole identity.

    `blobsize` is the size of its blob in bytes, 0 if it has none; `boot` and `monotonic` (ns) say
    when it was made. `time` is UTC where `timebound` is true: the device's clock was synchronised
    in that boot, then or later. Else it is a label, and may be years off.
    """

    specversion: str = "1.0"
    id: str
    source: str
    type: str
    time: str
    timebound: bool = False
    sequence: int
    boot: str
    monotonic: int
    blobsize: int
    datacontenttype: str = "application/json"
    data: msgspec.Raw


def encode(
    device: str,
    epoch: str,
    stream: str,
    records: Sequence[Record],
    dropped: list[Drop],
    *,
    live: bool = False,
    before: int | None = None,
) -> bytes:
    """Records of one stream, in seq order, as a payload; without any, the dropped ranges alone.

    Raises ProtocolError when they are more than a receiver takes.
    """
    content = _content(device, epoch, stream, records)
    if len(content) > CONTENT_BYTES_MAX:
        raise _too_large()
    header = Header(
        device=device,
        epoch=epoch,
        stream=stream,
        first=records[0].seq if records else dropped[0].first,
        last=records[-1].seq if records else dropped[-1].last,
        count=len(records),
        digest=hashlib.sha256(content).hexdigest(),
        dropped=dropped,
        live=live,
        before=before,
    )
    return envelope.seal(header, zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content))


def decode(payload: bytes) -> tuple[Header, list[Event]]:
    """A payload as header and events, digest and count checked. Raises ProtocolError."""
    header, compressed = envelope.unseal(payload, Header)
    try:
        content = _decompressed(compressed)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"the batch's content is damaged: {error}") from error
    if hashlib.sha256(content).hexdigest() != header.digest:
        raise ProtocolError("the batch's content is not what its header says")
    events = envelope.from_json(content, list[Event])
    ends = [event.sequence for event in events[:1] + events[-1:]]
    if len(events) != header.count or (ends and ends != [header.first, header.last]):
        raise ProtocolError("the batch's records are not those that its header says")
    return header, events


def _decompressed(compressed: bytes) -> bytes:
    """The content of a frame, never more than CONTENT_BYTES_MAX. Raises ZstdError, ProtocolError.

    A frame may say how large it is, and lie; `max_output_size` bounds only one that does not say.
    """
    size = zstandard.frame_content_size(compressed)
    if size > CONTENT_BYTES_MAX:
        raise _too_large()
    if size >= 0:  # it cannot grow beyond that: zstd gives it a buffer of this size
        content: bytes = zstandard.ZstdDecompressor().decompress(compressed)
        return content
    unpacker = zstandard.ZstdDecompressor(max_window_size=CONTENT_BYTES_MAX)
    grown = bytearray()
    with unpacker.stream_reader(compressed) as reader:
        while step := reader.read(_STEP_BYTES):
            grown += step
            if len(grown) > CONTENT_BYTES_MAX:
                raise _too_large()
    return bytes(grown)


def _too_large() -> ProtocolError:
    return ProtocolError(
        f"the batch's content is larger than {CONTENT_BYTES_MAX >> 20} MiB", "send smaller batches"
    )


def _content(device: str, epoch: str, stream: str, records: Sequence[Record]) -> bytes:
    """The events as JSON, byte for byte what msgspec makes of a list of Event.

    Put together from pieces: that costs a quarter of an object for each event. What neighbours
    have in common is said once, in a form that their numbers are filled into.
    """
    parts: list[bytes] = []
    common, second_us, form = None, -1, b""
    for record in records:
        stamp = record.stamp
        us = stamp.wall_us % 1_000_000
        if stamp.wall_us - us != second_us or (record.type, stamp.boot, record.timebound) != common:
            common, second_us = (record.type, stamp.boot, record.timebound), stamp.wall_us - us
            form = _form(device, f"{epoch}/{stream}/", record)
        seq = record.seq
        parts.append(form % (seq, us, seq, stamp.mono_ns, record.blob_bytes, record.body))
    return b"[%b]" % b",".join(parts)


def _form(device: str, begin: str, record: Record) -> bytes:
    """An event like that of a record, but for its seq, the microseconds of its second, its seq
    again, its monotonic time, its blob's size and its body."""
    literal = [f"/holdfast/{device}", record.type, record.stamp.boot, begin]
    source, kind, boot, begin = (_text(word).replace("%", "%%") for word in literal)
    bound = "true" if record.timebound else "false"
    return (
        f'{{"specversion":"1.0","id":{begin[:-1]}%d","source":{source},"type":{kind},'
        f'"time":"{_second(record.stamp.wall_us)}.%06dZ","timebound":{bound},"sequence":%d,'
        f'"boot":{boot},"monotonic":%d,"blobsize":%d,"datacontenttype":"application/json",'
        '"data":%b}'
    ).encode()


def _text(text: str) -> str:
    """A string in JSON, with its quotes."""
    return msgspec.json.encode(text).decode()


def _second(wall_us: int) -> str:
    """A whole second as RFC 3339 has it, without the fraction and the zone."""
    return datetime.fromtimestamp(wall_us // 1_000_000, UTC).isoformat()[:19]
