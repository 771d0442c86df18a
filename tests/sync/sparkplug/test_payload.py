"""The payload's codec, judged by the real protobuf library in both directions.

HOLDFAST_LONG=1 makes 100,000 broken payloads of the 2,000; HOLDFAST_SEED chooses which.
"""

import math
import os
import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProtocolError
from agent.sync.sparkplug import payload
from agent.sync.sparkplug.payload import DataType, Metric
from tests.sync.sparkplug.tahu import Payload, parsed

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
BROKEN = 100_000 if LONG else 2_000
# How fields begin within which nobody looks here: metadata, properties, data sets, templates and
# extensions. In them, something may be wrong.
UNREAD = (b"\x42", b"\x4a", b"\x8a\x01", b"\x92\x01", b"\x9a\x01")
FIELDS = {
    DataType.INT32: "int_value",
    DataType.INT64: "long_value",
    DataType.DOUBLE: "double_value",
    DataType.BOOLEAN: "boolean_value",
    DataType.STRING: "string_value",
}
UINT64 = st.integers(0, 2**64 - 1)
TYPED = st.one_of(
    st.tuples(st.just(DataType.INT32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(DataType.INT64), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(DataType.DOUBLE), st.floats()),
    st.tuples(st.just(DataType.BOOLEAN), st.booleans()),
    st.tuples(st.just(DataType.STRING), st.text()),
    st.tuples(st.sampled_from(DataType), st.none()),
)
METRIC = st.tuples(TYPED, UINT64, st.none() | st.text(), st.none() | UINT64)


def signed(datatype: DataType, value: Any) -> Any:
    """Sparkplug's signed integers lie in unsigned fields."""
    bits = {DataType.INT32: 32, DataType.INT64: 64}.get(datatype)
    return value - (1 << bits) if bits and value >> bits - 1 else value


def alike(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(UINT64, st.none() | st.integers(0, 255), st.lists(METRIC, max_size=5))
def test_what_is_sent_is_read_by_the_library(at: int, seq: int | None, metrics: list[Any]) -> None:
    made = [
        payload.metric(kind, value, when, name=name, alias=alias)
        for (kind, value), when, name, alias in metrics
    ]
    found = parsed(payload.payload(at, made, seq))
    assert found.timestamp == at
    assert (found.seq if found.HasField("seq") else None) == seq
    assert len(found.metrics) == len(metrics)
    for one, ((kind, value), when, name, alias) in zip(found.metrics, metrics, strict=True):
        assert one.timestamp == when
        assert (one.name if one.HasField("name") else None) == name
        assert (one.alias if one.HasField("alias") else None) == alias
        assert (one.datatype if one.HasField("datatype") else None) == (
            None if name is None else kind
        )
        assert one.is_null == (value is None)
        assert one.WhichOneof("value") == (None if value is None else FIELDS[kind])
        if value is not None:
            assert alike(signed(kind, getattr(one, FIELDS[kind])), value)


def expected(one: Any) -> Metric:
    """What a metric of the library's is to be read as."""
    which = one.WhichOneof("value")
    value = getattr(one, which) if which and not one.is_null else None
    if value is not None and not isinstance(value, bool | int | float | str | bytes):
        value = value.SerializeToString()
    return Metric(
        one.name if one.HasField("name") else None,
        one.alias if one.HasField("alias") else None,
        value,
    )


def same(ours: payload.Payload, theirs: Any) -> bool:
    return (
        ours.timestamp_ms == (theirs.timestamp if theirs.HasField("timestamp") else None)
        and ours.seq == (theirs.seq if theirs.HasField("seq") else None)
        and len(ours.metrics) == len(theirs.metrics)
        and all(
            (one.name, one.alias) == (other.name, other.alias)
            and type(one.value) is type(other.value)
            and (isinstance(one.value, bytes) or alike(one.value, other.value))
            for one, other in zip(ours.metrics, map(expected, theirs.metrics), strict=True)
        )
    )


def full(chance: random.Random) -> Any:
    """A payload with all that Tahu's has."""
    made = Payload(timestamp=chance.randrange(2**64), seq=chance.randrange(256))
    for _ in range(chance.randrange(4)):
        one = made.metrics.add()
        if chance.random() < 0.7:
            one.name = chance.choice(["Node Control/Rebirth", "", "温度", "a" * 200])
        if chance.random() < 0.5:
            one.alias = chance.choice([0, 1, 127, 128, 2**32, 2**64 - 1])
        if chance.random() < 0.5:
            one.timestamp, one.datatype = chance.randrange(2**64), chance.randrange(35)
        one.is_null = chance.random() < 0.1
        if chance.random() < 0.2:
            one.properties.keys.append("Quality")
            one.properties.values.add(type=3, int_value=192)
            one.metadata.description = "x"
        match chance.randrange(10):
            case 0:
                one.int_value = chance.randrange(2**32)
            case 1:
                one.long_value = chance.randrange(2**64)
            case 2:
                one.float_value = chance.uniform(-1e9, 1e9)
            case 3:
                one.double_value = chance.choice([0.1, -0.0, math.inf, math.nan, 5e-324])
            case 4:
                one.boolean_value = chance.random() < 0.5
            case 5:
                one.string_value = chance.choice(["", "wörter", "\0"])
            case 6:
                one.bytes_value = chance.randbytes(chance.randrange(9))
            case 7:
                one.dataset_value.columns.append("a")
                one.dataset_value.rows.add().elements.add(string_value="b")
            case 8:
                one.template_value.metrics.add(name="inner", boolean_value=True)
    if chance.random() < 0.2:
        made.uuid, made.body = "u", b"body"
    return made


def test_what_the_library_sends_is_read() -> None:
    chance = random.Random(SEED)
    for _ in range(500):
        made = full(chance)
        assert same(payload.decode(made.SerializeToString()), made), made


def broken(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(damaged) + 1)
        match chance.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del damaged[at:]
            case 2:
                damaged[at:at] = chance.randbytes(chance.randrange(1, 6))
            case 3:
                del damaged[at : at + chance.randrange(1, 6)]
    return bytes(damaged)


def may_differ(theirs: Any, error: ProtocolError) -> bool:
    """Whether this may be refused though the library takes it: groups, and texts that are none."""
    return "of kind 3" in str(error) or "not UTF-8" in str(error)


def test_what_is_broken_is_refused_or_read_as_the_library_does() -> None:
    print(f"HOLDFAST_SEED={SEED}")
    chance, refused = random.Random(SEED), 0
    for _ in range(BROKEN):
        content = broken(full(chance).SerializeToString(), chance)
        if chance.random() < 0.1:
            content = chance.randbytes(chance.randrange(60))
        try:
            theirs = parsed(content)
        except DecodeError:
            theirs = None
        try:
            ours = payload.decode(content)
        except ProtocolError as error:
            refused += 1
            assert theirs is None or may_differ(theirs, error), (content, error)
        else:
            assert theirs is not None or any(key in content for key in UNREAD), content
            assert theirs is None or same(ours, theirs), content
    assert BROKEN * 0.2 < refused < BROKEN * 0.9, refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x08", "does not end"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "does not end"),
        (b"\x88\x80\x80\x80\x80\x00\x01", "does not end"),  # a key of six bytes
        (b"\x00\x01", "number 0"),
        (b"\x12\x05\x0a", "5 bytes are to follow, there are 1"),
        (b"\x12\x04\x0a\x02\xff\xfe", "not UTF-8"),
        (b"\x0b", "kind 3"),
        (b"\x0e", "kind 6"),
        (bytes(payload.PAYLOAD_BYTES_MAX + 1), "8193 bytes; expected 8192 at most"),
        (b"\x12\x00" * (payload.METRICS_MAX + 1), "more than 100 metrics"),
    ],
)
def test_a_refusal_says_what_is_wrong(content: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        payload.decode(content)
