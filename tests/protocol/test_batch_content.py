"""A batch's content is put together by hand: it must be what its shape says, byte for byte."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import batch
from agent.records import Record, Stamp

BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
texts = st.text(max_size=12)
stamps = st.builds(
    Stamp, texts, st.integers(0, 2**62), st.integers(-(10**15), 9 * 10**15)
)  # a wrong clock may be long before 1970
records = st.builds(
    Record,
    stream=texts,
    seq=st.integers(1, 2**40),
    type=texts,
    stamp=stamps,
    body=st.sampled_from([b"{}", b'{"a":"\xc3\xa4"}', b"[1, 2]"]),
    blob_bytes=st.integers(0, 2**28),
    timebound=st.booleans(),
)


@given(device=texts, epoch=texts, stream=texts, some=st.lists(records, min_size=1, max_size=4))
def test_content_is_what_msgspec_makes_of_the_events(
    device: str, epoch: str, stream: str, some: list[Record]
) -> None:
    some = [msgspec.structs.replace(one, seq=n, stream=stream) for n, one in enumerate(some, 1)]
    header, events = batch.decode(batch.encode(device, epoch, stream, some, [], live=True))
    assert header.live
    assert msgspec.json.encode(events) == batch._content(device, epoch, stream, some)
    for event, one in zip(events, some, strict=True):
        assert event.id == f"{epoch}/{stream}/{one.seq}"
        assert (event.source, event.type) == (f"/holdfast/{device}", one.type)
        assert (event.sequence, event.boot) == (one.seq, one.stamp.boot)
        assert (event.monotonic, event.blobsize) == (one.stamp.mono_ns, one.blob_bytes)
        assert (event.timebound, bytes(event.data)) == (one.timebound, one.body)
        made = msgspec.convert(event.time, type=datetime)
        assert (made - BEGIN) // timedelta(microseconds=1) == one.stamp.wall_us
