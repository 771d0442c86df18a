"""Whether a version on trial is good."""

import pytest

from agent.versions.forms import Trial
from agent.versions.judge import Seen, judge
from tests.versions.site import condition

AUTO = Trial(1, "auto", 60.0, link_was_up=True, held=(("domain_down", "old"),))
OLD = [condition("domain_down", subject="old"), condition("quota_reached")]
WELL = Seen(500.0, OLD)
DOWN = [condition("link_down", subject="link")]


def test_nothing_is_judged_before_its_time() -> None:
    assert judge(AUTO, Seen(None, [condition("domain_down")]), 59.9).word == "wait"


def test_a_start_is_good_once_the_agent_is_on_it() -> None:
    trial = Trial(1, "start")
    assert judge(trial, Seen(None, [condition("domain_down")]), 0.0).word == "confirm"


def test_what_waits_for_somebody_is_taken_back_without_him_however_well_all_is() -> None:
    trial = Trial(1, "manual", 60.0)
    assert judge(trial, WELL, 59.0).word == "wait"
    word, why = judge(trial, WELL, 60.0)
    assert (word, why) == ("take back", "nobody confirmed it within 60 s")


def test_what_was_before_and_what_no_configuration_causes_speaks_against_none() -> None:
    assert judge(AUTO, WELL, 60.0).word == "confirm"


@pytest.mark.parametrize(
    "one",
    [
        condition("domain_down", subject="new"),
        condition("broker_refused"),
        condition("store_full", "critical"),
    ],
)
def test_what_is_new_does(one: object) -> None:
    word, why = judge(AUTO, Seen(500.0, [one]), 60.0)  # type: ignore[list-item]
    assert word == "take back"
    assert f"{one.name} {one.subject}: why" in why  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("window_s", "elapsed_s", "link_s", "word", "why"),
    [
        (60.0, 60.0, None, "take back", "the link was not there: why"),
        (60.0, 60.0, 30.0, "confirm", ""),  # for half of the time, in one piece
        (60.0, 60.0, 29.9, "wait", ""),  # it came late,
        (60.0, 60.1, 30.0, "confirm", ""),  # and stands
        (60.0, 60.0, 0.0, "wait", ""),
        (60.0, 90.0, 30.0, "confirm", ""),  # as long as it is given
        (60.0, 61.0, 0.9, "take back", "0.9 s ago it was not there"),  # it was lost meanwhile
        (60.0, 75.0, 10.0, "take back", "10.0 s ago it was not there"),
        (60.0, 75.0, None, "take back", "the link was not there: why"),
        (600.0, 600.0, 29.9, "wait", ""),
        (600.0, 600.0, 30.0, "confirm", ""),  # however long the time is
        (10.0, 10.0, 4.9, "wait", ""),
        (10.0, 10.0, 5.0, "confirm", ""),
        (10.0, 12.0, 1.5, "take back", "1.5 s ago"),
        (1.0, 1.0, 0.5, "confirm", ""),
    ],
)
def test_a_link_that_was_there_has_to_stand(
    window_s: float, elapsed_s: float, link_s: float | None, word: str, why: str
) -> None:
    trial = Trial(1, "auto", window_s, link_was_up=True)
    found = judge(trial, Seen(link_s, DOWN if link_s is None else []), elapsed_s)
    assert (found.word, why in found.why) == (word, True), found.why


@pytest.mark.parametrize("up_s", [0.4, 1.0, 5.0, 20.0, 29.0])
@pytest.mark.parametrize("down_s", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("window_s", [60.0, 120.0])
def test_one_that_comes_and_goes_is_taken_back_and_soon(
    up_s: float, down_s: float, window_s: float
) -> None:
    """Looked at as often as the agent does, from any moment of its coming and going on."""
    trial = Trial(1, "auto", window_s, link_was_up=True)
    for shift in range(20):
        since_s = window_s + 0.1 * shift
        while True:
            at_s = (since_s + 1.7 * shift) % (up_s + down_s)
            found = judge(trial, Seen(at_s if at_s < up_s else None, []), since_s)
            if found.word != "wait":
                break
            since_s += 0.5
        assert found.word == "take back"
        assert since_s <= window_s + 0.1 * shift + up_s + 0.5


def test_without_a_link_before_none_is_asked_for() -> None:
    trial = Trial(1, "auto", 60.0)
    for link_s in (None, 0.0, 500.0):
        assert judge(trial, Seen(link_s, DOWN), 60.0).word == "confirm"
