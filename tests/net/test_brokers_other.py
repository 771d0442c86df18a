"""The whole path over brokers other than Mosquitto.

What they lack of MQTT 5 is a condition that the device reports, and no reason to lose anything.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.listener import Listener
from tests.net.brokers import Amqtt, Nats, RabbitMq, Served
from tests.net.coordinator import DEVICE, LONG, Site
from tests.outside import until

PRESENCE = f"holdfast/v1/{DEVICE}/presence"
ACK = f"holdfast/v1/{DEVICE}/ack"
BROKERS = [Nats, RabbitMq, Amqtt]


@pytest.fixture(params=BROKERS, ids=lambda kind: kind.__name__.lower())
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Served:
    made: Served = request.param(tmp_path)
    return made


class Ear(Listener):
    """A plain MQTT 3.1.1 client."""

    def last(self, topic: str) -> dict[str, Any]:
        """The newest of a topic (amqtt sends what others had asked for, too); empty: none."""
        heard = [json.loads(payload) for said, payload, _ in list(self.got) if said == topic]
        return heard[-1] if heard else {}


@pytest.fixture
def ear() -> Iterator[Callable[[int, str], Ear]]:
    made: list[Ear] = []

    def make(port: int, topic: str) -> Ear:
        made.append(Ear(port, topic))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_the_whole_path(tmp_path: Path, broker: Served, ear: Callable[[int, str], Ear]) -> None:
    """Birth, records, the broker's death in the middle, the last ack, the will; and what is kept
    of it for who comes later."""
    with Site(tmp_path, broker=broker, connect_timeout_s=1) as site:
        site.linked()
        site.holds("broker_features")
        site.stores(60)
        broker.kill()
        site.linked(up=False)
        site.makes(60)
        broker.start()
        site.linked()
        early = ear(broker.port, PRESENCE)
        until(lambda: online(early) is True, "the birth waits at the broker")
        site.stores(20)
        site.recover()  # and the device is killed
        until(lambda: online(early) is False, "the will is told")
        late = ear(broker.port, ACK)
        until(lambda: late.last(ACK), "the ack waits at the broker")
        assert "cam.segments" in next(iter(late.last(ACK)["epochs"].values()))
        assert site.faults() == []


def test_nats_and_a_client_id_with_a_dot(tmp_path: Path) -> None:
    """The default one has it where the device's id has one."""
    with Site(tmp_path, broker=Nats(tmp_path), client_id="line.7") as site:
        site.until(lambda: "link.client_id" in site.remedy("link_down"), "the remedy names it")


@pytest.mark.skipif(not LONG, reason="HOLDFAST_LONG=1 starts one more RabbitMQ")
def test_rabbitmq_and_a_device_with_a_dot(tmp_path: Path) -> None:
    """Nothing of it comes to the ingest; the device says what may be the matter."""
    broker, device = RabbitMq(tmp_path), "line.7"
    with Site(tmp_path, broker=broker, connect_timeout_s=1, device_id=device) as site:
        site.until(lambda: "without dots" in site.remedy("ack_missing"), "the remedy names it")
        assert site.cloud.count() == 0


def online(ear: Ear) -> Any:
    """What was said last about the device; None before the first word."""
    return ear.last(PRESENCE).get("online")


def test_a_payload_limit_that_nobody_tells(tmp_path: Path) -> None:
    """MQTT 3.1.1 has no word for it: NATS hangs up on a payload that is too large, each time."""
    broker = Nats(tmp_path, extra="max_payload: 40000\n")
    with Site(tmp_path, broker=broker, records=60) as site:
        site.makes_all()
        site.recover()
        assert site.faults() == []
