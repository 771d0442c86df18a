"""A command comes back as it was signed, or is refused; nothing that comes does anything else."""

import base64
import hashlib
import os
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import commands, signing
from agent.protocol.commands import COMMAND_BYTES_MAX, DEPTH_MAX, Command, Unread, decode, sign

LONG = os.environ.get("HOLDFAST_LONG") == "1"
KEY, OTHER = signing.Key(b"k" * 32), signing.Key(b"o" * 32)
IDS = st.builds("{}{}".format, st.sampled_from("aZ7"), st.text("aZ7_.:-", max_size=63))
NAMES = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=3).map(".".join)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
INSTANTS = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))
COMMANDS = st.builds(
    Command,
    id=IDS,
    name=NAMES,
    args=st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
    device=st.none() | st.text("aZ7_.-", min_size=1, max_size=64),
    issuer=st.text(max_size=128),
    issued=INSTANTS,
    expires=INSTANTS,
)
ONE = Command(
    id="roll-7.plant-4",
    name="device.reboot",
    args={"for_s": 3600, "why": "čas"},
    device="plant-4",
    issuer="ann",
    issued=datetime(2031, 5, 4, tzinfo=UTC),
    expires=datetime(2031, 5, 5, tzinfo=UTC),
)


@given(COMMANDS)
def test_a_command_comes_back_as_it_was_signed(command: Command) -> None:
    order = decode(sign(command, KEY))
    assert (order.command, order.by) == (command, KEY.public)
    plain = decode(msgspec.json.encode(command))
    assert (plain.command, plain.by) == (command, "")


def test_whichever_byte_is_changed_it_is_the_same_command_or_none() -> None:
    whole = sign(ONE, KEY)
    for at in range(len(whole)):
        for to in {whole[at] ^ 1, whole[at] ^ 0x20, whole[at] ^ 0x80, 0, ord(" "), ord('"')}:
            changed = whole[:at] + bytes([to]) + whole[at + 1 :]
            if (order := taken(changed)) is not None:
                assert (order.command, order.by) == (ONE, KEY.public), changed


def taken(payload: bytes) -> commands.Order | None:
    """The order; None for what is refused with a reason. Anything else it does fails the test."""
    try:
        return decode(payload)
    except Unread as error:
        assert error.reason in ("unreadable", "bad_args", "bad_signature"), error
        assert len(str(error)) <= commands.MESSAGE_CHARS_MAX, "it is told to whoever waits"
        assert str(error).isprintable()
        assert len(error.id) <= 200
        assert len(error.name) <= 200
        return None


def test_whatever_comes_is_a_command_or_is_refused() -> None:
    """From what is almost right: cut, doubled, spliced, with other values, other bytes."""
    dice = random.Random(int(os.environ.get("HOLDFAST_SEED", "7")))
    seeds = [sign(ONE, KEY), msgspec.json.encode(ONE), *map(written, ODD)]
    for _ in range(100_000 if LONG else 3_000):
        order = taken(payload := mutated(dice, seeds))
        if order is not None and order.by:
            text = msgspec.json.decode(payload)["signed"]
            assert text in SIGNED, "nobody signed this"


ODD: list[Any] = [
    {},
    {"id": "a", "name": "b"},
    {"signed": "{}", "by": KEY.public, "signature": ""},
    {"signed": '{"id":"a","name":"b"}', "by": KEY.public, "signature": "A" * 88},
    {"signed": 1, "by": [], "signature": {}},
    {"id": "a", "name": "b", "args": {"x": [[[[[]]]], {"y": 1e300}, -(2**63), 2**64 - 1]}},
    {"id": "a", "name": "b", "expires": "9999-12-31T23:59:59-23:59"},
    {"id": "a", "name": "b", "issued": "0001-01-01T00:00:00+23:59", "device": "x"},
]
SIGNED = {msgspec.json.encode(ONE).decode()}
PIECES = [
    *(b"", b"{", b"}", b"[" * 50, b'"', b"\\", b"\\ud800", b"\xff", b"\x00", b"null", b"1e999"),
    *(b'"signed"', b'"id"', b'"args"', b'"by"', b"9" * 400, b"-", b"\n", b"\xe2\x80\xae", b"true"),
    *(KEY.public.encode(), OTHER.public.encode(), b'"expires":"2031-05-05T00:00:00Z",'),
]


def written(value: Any) -> bytes:
    return msgspec.json.encode(value)


def mutated(dice: random.Random, seeds: list[bytes]) -> bytes:
    """Some changes of one of them."""
    payload = dice.choice(seeds)
    for _ in range(dice.randint(1, 4)):
        at, end = sorted(dice.randint(0, len(payload)) for _ in "ab")
        way = dice.randrange(6)
        if way == 0:
            payload = payload[:at]
        elif way == 1:
            payload = payload[:at] + dice.choice(PIECES) + payload[at:]
        elif way == 2:
            payload = payload[:at] + dice.choice(PIECES) + payload[end:]
        elif way == 3:
            payload = payload[:end] + payload[at:]
        elif way == 4 and payload:
            at = min(at, len(payload) - 1)
            payload = payload[:at] + dice.randbytes(1) + payload[at + 1 :]
        else:
            other = dice.choice(seeds)
            payload = payload[:at] + other[dice.randint(0, len(other)) :]
    return payload


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode) | VALUES.map(written))
def test_what_is_no_command_at_all_is_refused(payload: bytes) -> None:
    order = taken(payload)
    assert order is None or not order.by


@given(COMMANDS)
def test_another_hand_is_seen(command: Command) -> None:
    """The text of one, the key or the signature of another; and a signature of something else."""
    mine, his = (msgspec.json.decode(sign(command, key)) for key in (KEY, OTHER))
    text = mine["signed"].encode()
    bundle = base64.b64encode(KEY.sign(hashlib.sha256(text).digest())).decode()
    for changed in (
        {**mine, "by": OTHER.public},
        {**mine, "signature": his["signature"]},
        {**mine, "signature": bundle},  # by the same key, of a bundle
        {**mine, "signature": mine["signature"][:-4]},
        {**mine, "signature": ""},
        {**mine, "signed": mine["signed"] + " "},
        {**mine, "by": "hf1pub:" + "A" * 43 + "="},
    ):
        with pytest.raises(Unread) as raised:
            decode(written(changed))
        assert raised.value.reason == "bad_signature"
        assert (raised.value.id, raised.value.name) == (command.id, command.name)


@pytest.mark.parametrize(
    ("payload", "reason", "id"),
    [
        (b"x" * (COMMAND_BYTES_MAX + 1), "unreadable", ""),
        (b"[" * 200_000, "unreadable", ""),
        (b'{"a":' * 50_000, "unreadable", ""),
        (b'{"id":"a","name":"b","args":{"x":%s}}' % (b"9" * 10_000), "unreadable", ""),
        (b'{"id":"a","name":"b","%s":1}' % (b"x" * 200_000), "unreadable", "a"),
        (b'{"id":"a\\n","name":"b"}', "unreadable", "a\\x0a"),
        (b'{"id":"a","name":"b\\n"}', "unreadable", "a"),
        (b'{"id":"%s","name":"b"}' % (b"a" * 65), "unreadable", "a" * 65),
        (b'{"id":"a","name":"b","extra":1}', "unreadable", "a"),
        (b'{"id":"a","name":"b","issued":"2031-05-05T00:00:00"}', "unreadable", "a"),
        (b'{"id":["a"],"name":7}', "unreadable", ""),
        (b'{"id":"a","name":"b","signed":"{}"}', "unreadable", ""),
        (b"\xef\xbb\xbf{}", "unreadable", ""),
    ],
)
def test_what_is_refused_says_why_and_to_whom(payload: bytes, reason: str, id: str) -> None:
    assert taken(payload) is None
    with pytest.raises(Unread) as raised:
        decode(payload)
    assert (raised.value.reason, raised.value.id) == (reason, id)


@pytest.mark.parametrize("levels", [DEPTH_MAX - 1, DEPTH_MAX])
def test_how_deep_arguments_may_be(levels: int) -> None:
    inner: Any = 0
    for _ in range(levels - 1):
        inner = [inner]
    command = Command(id="a", name="b", args={"x": inner})
    for payload in (written(command), sign(command, KEY)):
        if levels < DEPTH_MAX:
            assert decode(payload).command == command
        else:
            with pytest.raises(Unread) as raised:
                decode(payload)
            assert raised.value.reason == "bad_args"


def test_instants_at_the_ends_of_the_calendar_can_be_compared() -> None:
    """In UTC some of them are no dates at all, so they must never be turned into it."""
    for text in ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"):
        order = decode(written({"id": "a", "name": "b", "expires": text}))
        assert order.command.expires is not None
        assert abs(order.command.expires - datetime.now(UTC)) > timedelta(days=1)
        assert decode(sign(order.command, KEY)).command == order.command
