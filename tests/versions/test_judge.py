"""Whether a version on trial is good."""

import pytest

from agent.versions.forms import Trial
from agent.versions.judge import Seen, judge
from tests.versions.site import condition

AUTO = Trial(1, "auto", 60.0, link_was_up=True, held=(("domain_down", "old"),))
WELL = Seen(5.0, [condition("domain_down", subject="old"), condition("quota_reached")])


def test_nothing_is_judged_before_its_time() -> None:
    assert judge(AUTO, Seen(None, [condition("domain_down")]), 59.9, linked=False).word == "wait"


def test_a_start_is_good_once_the_agent_is_on_it() -> None:
    trial = Trial(1, "start")
    assert judge(trial, Seen(None, [condition("domain_down")]), 0.0, linked=False).word == "confirm"


def test_what_waits_for_somebody_is_taken_back_without_him_however_well_all_is() -> None:
    trial = Trial(1, "manual", 60.0)
    assert judge(trial, WELL, 59.0, linked=True).word == "wait"
    word, why = judge(trial, WELL, 60.0, linked=True)
    assert (word, why) == ("take back", "nobody confirmed it within 60 s")


def test_what_was_before_and_what_no_configuration_causes_speaks_against_none() -> None:
    assert judge(AUTO, WELL, 60.0, linked=True).word == "confirm"


@pytest.mark.parametrize(
    "one",
    [
        condition("domain_down", subject="new"),
        condition("broker_refused"),
        condition("store_full", "critical"),
    ],
)
def test_what_is_new_does(one: object) -> None:
    word, why = judge(AUTO, Seen(5.0, [one]), 60.0, linked=True)  # type: ignore[list-item]
    assert word == "take back"
    assert f"{one.name} {one.subject}: why" in why  # type: ignore[attr-defined]


def test_a_link_that_was_there_has_to_come_back() -> None:
    down = condition("link_down", subject="link")
    word, why = judge(AUTO, Seen(None, [down]), 60.0, linked=False)
    assert (word, why) == ("take back", "after 60 s the link was not back: why")
    assert judge(AUTO, Seen(None, [down]), 60.0, linked=True).word == "confirm", "it was there"
    without = Trial(1, "auto", 60.0)
    assert judge(without, Seen(None, [down]), 60.0, linked=False).word == "confirm"
