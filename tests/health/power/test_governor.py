"""Which profile is in force, as what is read goes up and down."""

from datetime import datetime

import pytest

from agent.config import Power, PowerProfile, PowerRule
from agent.health.power.governor import Governor, Seen, Verdict

PROFILES = {name: PowerProfile() for name in ("full", "low", "night")}
HOT = PowerRule(profile="low", above_c=90)
EMPTY = PowerRule(profile="low", battery_below=0.4)
NIGHT = PowerRule(profile="night", begin="22:00", end="06:00")
EVENING, MIDNIGHT, MORNING = (datetime(2026, 3, 4, hour, 30) for hour in (21, 0, 6))
TEMPERATURES = [80.0, 90.0, 85.0, 80.0, 79.9, 85.0]
CHARGES = [1.0, 0.39, 0.45, 0.51, 0.45]


def course(rule: PowerRule, *seen: Seen) -> list[str | None]:
    governor = Governor(Power(PROFILES, "full", [rule]))
    return [governor.judge(one).profile for one in seen]


def test_heat_holds_until_it_is_cooler_by_some_degrees() -> None:
    found = course(HOT, *(Seen(hottest_c=one) for one in TEMPERATURES))
    assert found == ["full", "low", "low", "low", "full", "full"]


def test_a_battery_holds_until_it_has_some_more() -> None:
    found = course(EMPTY, *(Seen(battery_left=one) for one in CHARGES))
    assert found == ["full", "low", "low", "full", "full"]


def test_mains_end_it_at_once() -> None:
    assert course(EMPTY, Seen(battery_left=0.1), Seen(battery_left=1.0)) == ["low", "full"]


@pytest.mark.parametrize("rule", [HOT, EMPTY])
def test_what_cannot_be_read_begins_nothing_and_ends_nothing(rule: PowerRule) -> None:
    bad = Seen(hottest_c=95.0, battery_left=0.1)
    assert course(rule, Seen(), bad, Seen()) == ["full", "low", "low"]


def test_the_night_goes_past_midnight_and_needs_a_true_clock() -> None:
    seen = (Seen(now=one) for one in (EVENING, MIDNIGHT, None, MORNING))
    assert course(NIGHT, *seen) == ["full", "night", "full", "full"]


def test_the_first_rule_that_holds_counts_and_says_why() -> None:
    governor = Governor(Power(PROFILES, None, [HOT, NIGHT, EMPTY]))
    assert governor.judge(Seen()) == Verdict(None)
    night = Verdict("night", "it is between 22:00 and 06:00")
    assert governor.judge(Seen(50.0, 0.2, MIDNIGHT)) == night
    assert governor.judge(Seen(91.5, 0.2, MIDNIGHT)) == Verdict("low", "it has reached 90 °C")
    assert governor.judge(Seen(50.0, 0.2, MORNING)) == Verdict("low", "its battery is below 40%")
