"""Conditions: a name, a since, a cause and a remedy for whatever degrades."""

import logging

import msgspec
import pytest

from agent.clock import Clock
from agent.health.conditions import TEXT_CHARS_MAX, Conditions


class Bent(Clock):
    """A clock that goes as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.since_boot_s = 100.0
        self.wall_s = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.since_boot_s

    def wall(self) -> float:
        return self.wall_s


@pytest.fixture
def clock() -> Bent:
    return Bent()


@pytest.fixture
def conditions(clock: Bent) -> Conditions:
    return Conditions(clock)


def test_a_condition_says_what_since_when_why_and_what_to_do(
    clock: Bent, conditions: Conditions
) -> None:
    conditions.hold("link_down", "link", "warning", "no route to host", "check the cable")
    clock.since_boot_s += 7.5
    (held,) = conditions.all()
    assert (held.name, held.subject, held.severity) == ("link_down", "link", "warning")
    assert (held.cause, held.remedy) == ("no route to host", "check the cable")
    assert held.since_us == 1_800_000_000_000_000
    assert held.age_s == 7.5


def test_a_condition_that_is_held_again_keeps_its_since_and_takes_the_new_cause(
    clock: Bent, conditions: Conditions
) -> None:
    conditions.hold("link_down", "link", "warning", "no route to host", "check the cable")
    since_us = conditions.all()[0].since_us
    clock.since_boot_s += 60
    clock.wall_s += 60
    conditions.hold("link_down", "link", "critical", "refused", "check the password")
    (held,) = conditions.all()
    assert (held.cause, held.remedy, held.severity) == ("refused", "check the password", "critical")
    assert (held.since_us, held.age_s) == (since_us, 60)


def test_a_wall_clock_that_jumps_does_not_change_an_age(
    clock: Bent, conditions: Conditions
) -> None:
    conditions.hold("link_down", "link", "warning", "a", "b")
    clock.wall_s = 0.0
    clock.since_boot_s += 3
    assert conditions.all()[0].age_s == 3


def test_a_condition_that_is_over_is_gone_and_begins_anew(
    clock: Bent, conditions: Conditions
) -> None:
    conditions.hold("link_down", "link", "warning", "a", "b")
    conditions.clear("link_down", "link")
    assert conditions.all() == []
    clock.since_boot_s += 5
    conditions.hold("link_down", "link", "warning", "a", "b")
    assert conditions.all()[0].age_s == 0


def test_one_name_holds_for_each_subject_alone(conditions: Conditions) -> None:
    conditions.hold("store_full", "mic", "critical", "a", "b")
    conditions.hold("store_full", "inbox", "critical", "a", "b")
    conditions.clear("store_full", "mic")
    assert [c.subject for c in conditions.all()] == ["inbox"]


def test_the_gravest_come_first_and_decide_the_status(conditions: Conditions) -> None:
    assert conditions.status() == "healthy"
    conditions.hold("client_id_twice", "x", "note", "a", "b")
    assert conditions.status() == "healthy"
    conditions.hold("broker_refused", "x", "warning", "a", "b")
    assert conditions.status() == "degraded"
    conditions.hold("ack_missing", "x", "critical", "a", "b")
    conditions.hold("ack_missing", "w", "critical", "a", "b")
    assert conditions.status() == "unhealthy"
    assert [(c.name, c.subject) for c in conditions.all()] == [
        ("ack_missing", "w"),
        ("ack_missing", "x"),
        ("broker_refused", "x"),
        ("client_id_twice", "x"),
    ]


def test_a_condition_is_logged_when_it_begins_changes_and_ends_and_not_in_between(
    conditions: Conditions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for cause in ("first", "first", "first", "second"):
        conditions.hold("link_down", "link", "warning", cause, "wait")
    conditions.clear("link_down", "link")
    conditions.clear("link_down", "link")
    assert [record.getMessage() for record in caplog.records] == [
        "link_down link: first; wait",
        "link_down link: second; wait",
        "link_down link: over",
    ]


def test_a_cause_may_quote_any_name(conditions: Conditions) -> None:
    conditions.hold("ack_missing", "b", "warning", "caf\udce9\n.wav", "x\x1b[2J")
    (condition,) = conditions.all()
    assert condition.cause == "caf\ufffd\\x0a.wav"
    assert condition.remedy == "x\\x1b[2J"
    msgspec.json.encode(conditions.all())


def test_a_cause_of_any_length_is_cut(conditions: Conditions) -> None:
    for text in ("n" * 900_000, "\x00" * 900_000, "\U0010ffff" * 900_000):
        conditions.hold("ack_missing", "b", "warning", text, text)
        (condition,) = conditions.all()
        assert len(condition.cause) == len(condition.remedy) == TEXT_CHARS_MAX
        assert condition.cause.endswith("...")


def test_what_was_of_something_that_is_no_more_is_forgotten(conditions: Conditions) -> None:
    for name, subject in (("broker_refused", "up/a"), ("broker_refused", "up/b")):
        conditions.hold(name, subject, "warning", "the broker refused", "allow it")  # type: ignore[arg-type]
    conditions.hold("store_full", "store", "critical", "it is full", "make room")
    before = conditions.changes.number
    conditions.forget("broker_refused", "nobody_listens")
    assert [one.name for one in conditions.all()] == ["store_full"]
    assert conditions.changes.number == before + 2
