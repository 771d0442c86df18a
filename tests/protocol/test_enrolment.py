"""An enrolment comes back as it was signed, or is refused."""

from datetime import UTC, datetime

import msgspec
import pytest

from agent.errors import ProtocolError
from agent.protocol import commands, enrolment, signing
from agent.protocol.enrolment import Enrolment

KEY = signing.Key(b"k" * 32)
ONE = Enrolment(
    device="press-7",
    certificate="-----BEGIN CERTIFICATE-----",
    authority="-----BEGIN CERTIFICATE-----",
    broker_url="mqtts://broker.example",
    issued=datetime(2031, 5, 4, tzinfo=UTC),
    fleet_keys=[KEY.public],
)


def test_whichever_byte_is_changed_it_is_the_same_one_or_none() -> None:
    whole = enrolment.sign(ONE, KEY)
    assert enrolment.decode(whole) == (ONE, KEY.public)
    for at in range(len(whole)):
        for to in (whole[at] ^ 1, whole[at] ^ 0x20, whole[at] ^ 0x80, ord(" ")):
            try:
                found = enrolment.decode(whole[:at] + bytes([to]) + whole[at + 1 :])
            except ProtocolError:
                continue
            assert found == (ONE, KEY.public), at


def test_what_was_signed_as_something_else_is_none() -> None:
    text = msgspec.json.encode(ONE).decode()
    command = commands.Command(id="a", name="b", args={"enrolment": text})
    order = msgspec.json.decode(commands.sign(command, KEY))
    forged = {"enrolment": order["signed"], "by": order["by"], "signature": order["signature"]}
    with pytest.raises(ProtocolError, match="is not signed by"):
        enrolment.decode(msgspec.json.encode(forged))
    with pytest.raises(ProtocolError, match="more than 262144 bytes"):
        enrolment.decode(b" " * 300_000)
