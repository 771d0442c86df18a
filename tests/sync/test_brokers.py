"""Brokers in order of preference: the choice alone, and the link with real ones."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.clock import Clock
from agent.errors import LinkError
from agent.sync.mqtt.brokers import MQTT5, MQTT311, REMEMBERED_S, Brokers
from agent.sync.mqtt.faults import NoRetain, Refused, Unspoken
from tests.listener import Listener
from tests.outside import Mosquitto, running
from tests.sync.rig import Rig, Stub, emptied, eventually, linked, served

DOWN = LinkError("down")


class Set(Clock):
    """A clock that is set by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Set:
    return Set()


def test_a_round_asks_each_once_and_then_waits(clock: Set) -> None:
    brokers = Brokers(["a", "b", "c"], clock)
    asked = [(brokers.current.url, brokers.failed(DOWN)) for _ in range(6)]
    assert asked == 2 * [("a", False), ("b", False), ("c", True)]


def test_one_alone_is_waited_for_each_time(clock: Set) -> None:
    brokers = Brokers(["a"], clock)
    assert [brokers.failed(DOWN) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(("lasted", "then"), [(True, "a"), (False, "c")])
def test_after_a_loss_the_first_is_asked_or_the_next_of_one_that_did_not_last(
    clock: Set, lasted: bool, then: str
) -> None:
    brokers = Brokers(["a", "b", "c"], clock)
    brokers.failed(DOWN)
    assert brokers.current.url == "b"
    brokers.lost(DOWN, lasted=lasted)
    assert brokers.current.url == then


def test_the_way_back_and_why_it_was_left(clock: Set) -> None:
    brokers = Brokers(["a", "b"], clock)
    assert not brokers.fallen_back
    brokers.failed(DOWN)
    assert brokers.fallen_back
    assert brokers.preferred.fault == "down"
    brokers.prefer()
    assert not brokers.fallen_back


def test_the_version_is_remembered_for_each_broker_for_a_day(clock: Set) -> None:
    brokers = Brokers(["a", "b"], clock)
    assert not brokers.failed(Refused("no")), "asked for 3.1.1 at once"
    assert (brokers.current.url, brokers.current.version) == ("a", MQTT311)
    brokers.lost(DOWN, lasted=True)
    assert brokers.current.version == MQTT311
    brokers.failed(DOWN)
    assert brokers.current.version == MQTT5, "the other one was not asked yet"
    clock.now = REMEMBERED_S
    brokers.failed(DOWN)
    brokers.lost(DOWN, lasted=True)
    assert brokers.current.version == MQTT5


def test_one_that_refuses_every_version_ends_its_turn(clock: Set) -> None:
    brokers = Brokers(["a"], clock)
    assert [brokers.failed(Refused("no")) for _ in range(4)] == [False, True] * 2


def test_one_that_hangs_up_is_asked_otherwise_after_two_tries(clock: Set) -> None:
    brokers, asked = Brokers(["a"], clock), []
    for _ in range(5):
        asked.append(brokers.current.version)
        assert brokers.failed(Unspoken("..."))
    assert asked == [MQTT5, MQTT5, MQTT311, MQTT311, MQTT5]


def test_a_will_that_cannot_be_retained_is_given_up_once(clock: Set) -> None:
    brokers = Brokers(["a"], clock)
    assert not brokers.failed(NoRetain("no"))
    assert not brokers.current.retains
    assert brokers.failed(NoRetain("no")), "it says the same again: wait"


def test_the_embedded_broker_is_never_asked_for_what_it_does_not_know(clock: Set) -> None:
    brokers = Brokers(["a"], clock, MQTT311)
    for fault in (Unspoken("..."), Unspoken("..."), Refused("no"), DOWN):
        assert brokers.failed(fault)
        assert brokers.current.version == MQTT311


async def test_a_fallback_serves_until_the_preferred_one_answers(
    tmp_path: Path, broker: Mosquitto, listener: Listener
) -> None:
    preferred = Mosquitto(tmp_path)
    settings = {"fallback_urls": [broker.url], "prefer_s": 0.1, "ack_from": "broker"}
    async with linked(Rig(tmp_path, preferred.url, **settings)) as rig:
        await eventually(lambda: rig.holds("broker_fallback"), "the condition")
        assert rig.says(f"{broker.url} serves in place of {preferred.url}")
        assert rig.says("refused"), "and why"
        assert rig.link.state()["fallback"]
        await rig.fill(3)
        await emptied(rig)
        with running(preferred):
            await eventually(lambda: rig.link.state()["broker"] == preferred.url, "moved")
            await eventually(lambda: rig.link.connected_since, "connected there")
            assert not rig.holds("broker_fallback")
            await rig.fill(3)
            await emptied(rig)
            presence = listener.at("presence")
            await eventually(
                lambda: not msgspec.json.decode(listener.at("presence")[-1])["online"],
                f"a farewell at the other one: {presence}",
            )


async def test_probes_leave_the_connection_alone(tmp_path: Path, broker: Mosquitto) -> None:
    """The preferred one accepts connections, and hangs up on each CONNECT."""
    asked: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.read(4096))
        finally:
            writer.close()

    async with served(hang_up) as port:
        url = f"mqtt://127.0.0.1:{port}"
        async with linked(Rig(tmp_path, url, fallback_urls=[broker.url], prefer_s=0.02)) as rig:
            await eventually(lambda: rig.link.connected_since, "connected")
            since = rig.link.connected_since
            await eventually(lambda: len(asked) >= 5, "probed")
            assert rig.link.connected_since == since
            assert b"holdfast-dev-probe" in asked[-1]
            assert b"online" not in asked[-1], "a probe leaves no last will behind"


async def test_one_that_wants_the_true_client_id_alone_counts_as_there(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """It refuses every id with reason code 133: the probe's, and then the device's own."""
    stub = Stub(bytes([0, 133, 0]))
    settings = {"fallback_urls": [broker.url], "prefer_s": 0.05}
    async with linked(Rig(tmp_path, stub.url, **settings)) as rig:
        await eventually(lambda: rig.holds("broker_fallback"), "nobody is there yet")
        async with stub:
            await eventually(lambda: stub.asked and b"-probe" not in stub.asked[-1], "in earnest")
            await eventually(lambda: rig.link.connected_since, "back at the fallback")
            since, asked = rig.link.connected_since, stub.connects
            await eventually(lambda: stub.connects >= asked + 5, "probed on")
            assert rig.link.connected_since == since, "not tried in earnest again"
            assert rig.says("Client identifier not valid")
