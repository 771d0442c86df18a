"""Topics: whose a message is, also behind a broker that makes slashes of dots."""

import pytest

from fleet.store.arrivals import Arrival, Brought, Refusal, door_of, take_apart
from tests.fleet.sender import Sender

PREFIX = "holdfast/v1"


def folded(arrival: Arrival) -> Arrival:
    """As RabbitMQ gives it out."""
    return Arrival(arrival.topic.replace(".", "/"), arrival.payload)


def test_a_stream_with_dots_is_the_same_behind_rabbitmq() -> None:
    sender = Sender(stream="line.7.segments")
    for arrival in (sender.batch([1]), sender.piece(1, b"sound", 0, 5)):
        for one in (arrival, folded(arrival)):
            found = take_apart(PREFIX, one)
            assert isinstance(found, Brought)
            assert found.name == ("press-7", "e1", "line.7.segments")


def test_a_prefix_with_dots_is_too() -> None:
    arrival = Sender().batch([1])
    there = Arrival(arrival.topic.replace(PREFIX, "plant/a/v1"), arrival.payload)
    assert isinstance(take_apart("plant.a/v1", there), Brought)


@pytest.mark.parametrize(
    "topic",
    [
        "holdfast/v1/press-7/up/a/other",
        "holdfast/v1/press-7/up/a",
        "holdfast/v1/press-7/up",
        "holdfast/v1/press/7/up/a/segments",
        "holdfast/v1/other/up/a/segments",
        "holdfast/v1/press-7/up//a/segments",
        "holdfast/v2/press-7/up/a/segments",
    ],
)
def test_what_came_elsewhere_is_refused(topic: str) -> None:
    assert isinstance(take_apart(PREFIX, Arrival(topic, Sender().batch([1]).payload)), Refusal)


def test_a_device_with_dots_is_not_taken_for_another() -> None:
    """Its topic, folded, might be that of another device's stream."""
    arrival = Sender("a.up.b", stream="c").batch([1])
    assert isinstance(take_apart(PREFIX, arrival), Brought)
    assert isinstance(take_apart(PREFIX, folded(arrival)), Refusal)


@pytest.mark.parametrize("door", ["up/a/b", "blob/up", "presence", "heartbeat"])
def test_the_door_stands_behind_the_device(door: str) -> None:
    assert door_of(PREFIX, f"{PREFIX}/presence/{door}") == door.split("/")[0]
