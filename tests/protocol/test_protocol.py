"""What device and cloud speak: everything comes back as it was, everything else is refused."""

import hashlib
import itertools
import tracemalloc
import zlib
from collections.abc import Callable

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.protocol import ack, batch, blob, envelope
from agent.protocol.topics import Topics
from agent.records import Drop, Range, Record, Stamp

RECORDS = [
    Record("x.segments", seq, "holdfast.segment.v1", Stamp("boot", 5, 0), b'{"a":1}', 7)
    for seq in (3, 4, 7)
]


def test_a_batch_comes_back_as_cloud_events() -> None:
    payload = batch.encode("dev", "e1", "x.segments", RECORDS, [Drop(5, 6, "full")])
    header, events = batch.decode(payload)
    assert (header.device, header.epoch, header.stream) == ("dev", "e1", "x.segments")
    assert (header.first, header.last, header.count) == (3, 7, 3)
    assert header.dropped == [Drop(5, 6, "full")]
    first = msgspec.json.decode(msgspec.json.encode(events[0]))
    assert first["specversion"] == "1.0"
    assert first["id"] == "e1/x.segments/3"
    assert first["source"] == "/holdfast/dev"
    assert first["time"] == "1970-01-01T00:00:00.000000Z"
    assert (first["sequence"], first["blobsize"], first["monotonic"]) == (3, 7, 5)
    assert [bytes(event.data) for event in events] == [b'{"a":1}'] * 3


def test_an_envelope_explains_itself_to_any_reader() -> None:
    payload = batch.encode("dev", "e1", "x.segments", RECORDS, [])
    assert payload[:4] == b"HF1\n"
    size = int.from_bytes(payload[4:8], "big")
    assert int.from_bytes(payload[8:12], "big") == zlib.crc32(payload[12 : 12 + size])
    header = msgspec.json.decode(payload[12 : 12 + size])
    assert header["encoding"] == "zstd"
    assert header["content"] == "application/cloudevents-batch+json"


def test_a_piece_of_a_blob_comes_back() -> None:
    header, data = blob.decode(blob.encode("d", "e", "s", 1, 10, 15, b"\x00data"))
    assert (header.stream, header.seq, header.start, header.size) == ("s", 1, 10, 15)
    assert data == b"\x00data"


@pytest.mark.parametrize(
    ("start", "size", "data"), [(10, 14, b"12345"), (-1, 9, b"1"), (0, 9, b"")]
)
def test_a_piece_beyond_its_blob_is_refused(start: int, size: int, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="lie within"):
        blob.decode(blob.encode("d", "e", "s", 1, start, size, data))


def test_a_flipped_byte_in_a_piece_is_seen() -> None:
    payload = blob.encode("d", "e", "s", 1, 0, 4, b"data")
    with pytest.raises(ProtocolError, match="not what its header says"):
        blob.decode(payload[:-1] + b"b")


@given(st.binary(max_size=200))
def test_noise_is_refused_as_a_protocol_error(noise: bytes) -> None:
    for decode in (batch.decode, blob.decode, ack.decode):
        with pytest.raises(ProtocolError):
            decode(noise)
        with pytest.raises(ProtocolError):
            decode(envelope.MAGIC + noise)


def test_a_flipped_bit_never_passes_as_another_batch() -> None:
    """zstd has bits that say nothing: flipped, they give the same batch; any other is refused."""
    sent = batch.encode("dev", "e1", "x.segments", RECORDS, [Drop(5, 6, "full")])
    wanted, refused = batch.decode(sent), 0
    for place, bit in itertools.product(range(len(sent)), range(8)):
        payload = bytearray(sent)
        payload[place] ^= 1 << bit
        try:
            assert batch.decode(bytes(payload)) == wanted
        except ProtocolError:
            refused += 1
    assert refused > 7.9 * len(sent)


def packed(content: bytes) -> bytes:
    """A frame that says how large it is."""
    return zstandard.ZstdCompressor().compress(content)


def packed_unsaid(content: bytes) -> bytes:
    """A frame that does not say how large it is."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(content) + packer.flush()


def batch_of(frame: bytes, content: bytes) -> bytes:
    """A batch without records whose content is `frame`, its digest that of `content`."""
    header = batch.Header(
        device="dev",
        epoch="e1",
        stream="x.segments",
        first=1,
        last=1,
        count=0,
        digest=hashlib.sha256(content).hexdigest(),
    )
    return envelope.seal(header, frame)


@pytest.mark.parametrize("pack", [packed, packed_unsaid])
@pytest.mark.parametrize("excess", [1, 200 << 20])
def test_a_small_payload_that_grows_beyond_the_limit_is_refused(
    pack: Callable[[bytes], bytes], excess: int
) -> None:
    content = b"[" + bytes([32]) * (batch.CONTENT_BYTES_MAX + excess - 2) + b"]"
    payload = batch_of(pack(content), content)
    assert len(payload) < 1 << 20
    del content
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="larger than 16 MiB"):
            batch.decode(payload)
        assert tracemalloc.get_traced_memory()[1] < 2 * batch.CONTENT_BYTES_MAX
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [packed, packed_unsaid])
def test_content_up_to_the_limit_comes_back(pack: Callable[[bytes], bytes]) -> None:
    content = b"[" + bytes([32]) * (batch.CONTENT_BYTES_MAX - 2) + b"]"
    assert batch.decode(batch_of(pack(content), content))[1] == []


def test_more_than_a_receiver_takes_is_not_made() -> None:
    body = b'"' + bytes([32]) * batch.CONTENT_BYTES_MAX + b'"'
    record = Record("x.segments", 1, "segment", Stamp("boot", 1, 1), body, 0)
    with pytest.raises(ProtocolError, match="larger than 16 MiB"):
        batch.encode("dev", "e", "x.segments", [record], [])


@pytest.mark.parametrize("said", [0, 5, 100, 1 << 40])
def test_a_frame_that_lies_about_its_size_is_refused(said: int) -> None:
    content = b"[" + bytes([32]) * 300_000 + b"]"
    frame = bytearray(packed(content))
    assert frame[4] == 0b1010_0000, "in one segment, its size in 4 bytes"
    frame[4] |= 0b1100_0000  # now in 8 bytes
    frame[5:9] = said.to_bytes(8, "little")
    with pytest.raises(ProtocolError):
        batch.decode(batch_of(bytes(frame), content))


@pytest.mark.parametrize("pack", [packed, packed_unsaid])
@pytest.mark.parametrize("left", [0, 3, 6, 10, -1])
def test_a_frame_that_is_cut_off_is_refused(pack: Callable[[bytes], bytes], left: int) -> None:
    frame = pack(b"[]" + bytes([32]) * 1000)
    with pytest.raises(ProtocolError):
        batch.decode(batch_of(frame[:left], b"[]" + bytes([32]) * 1000))


def test_an_ack_comes_back_and_its_bounds_hold() -> None:
    word = ack.Ack({"e1": {"x.segments": ack.StreamAck(4, [Range(6, 9)], {10: 65_536})}})
    assert ack.decode(ack.encode(word)) == word
    wrong = [
        ack.StreamAck(-1),
        ack.StreamAck(0, [Range(5, 4)]),
        ack.StreamAck(0, [Range(0, 4)]),
        ack.StreamAck(0, [Range(i, i) for i in range(1, 2000)]),
        ack.StreamAck(0, [], dict.fromkeys(range(200), 1)),
    ]
    for stream in wrong:
        with pytest.raises(ProtocolError):
            ack.decode(ack.encode(ack.Ack({"e1": {"x": stream}})))


def test_topics_lie_below_the_device() -> None:
    topics = Topics("site/holdfast", "dev-1")
    assert topics.up("x.segments") == "site/holdfast/dev-1/up/x.segments"
    assert topics.ack == "site/holdfast/dev-1/ack"


def test_an_ack_beyond_its_bounds_is_refused() -> None:
    for word in (
        ack.Ack({"e": {str(i): ack.StreamAck() for i in range(1001)}}),
        ack.Ack({"e" * (1 << 20): {}}),
        ack.Ack({"e": {"x": ack.StreamAck(0, [Range(1, 2**63)])}}),
        ack.Ack({"e": {"x": ack.StreamAck(0, [], {1: 2**63})}}),
        ack.Ack({"": {"x": ack.StreamAck(1)}}),
        ack.Ack({"e": {"": ack.StreamAck(1)}}),
    ):
        with pytest.raises(ProtocolError):
            ack.decode(ack.encode(word))


def test_a_batch_of_dropped_ranges_alone_comes_back() -> None:
    drops = [Drop(3, 5, "full"), Drop(7, 7, "full")]
    header, events = batch.decode(batch.encode("dev", "e1", "x.segments", [], drops))
    assert (header.first, header.last, header.count, header.dropped) == (3, 7, 0, drops)
    assert events == []
