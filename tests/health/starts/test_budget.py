"""What starts cost, when that is too much, and how it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Watchdog
from agent.health.starts import budget
from agent.health.starts.budget import DAY_S, SHORT_S, Account, Kind, Limits, Safe, Spent
from agent.health.starts.causes import Cause, Run, Verdict

LIMITS = Limits(resets_max=3, safe_s=3600.0)
LONG, SHORT = Run("b", 0.0, SHORT_S), Run("b", 0.0, SHORT_S - 1)


@pytest.mark.parametrize(
    ("cause", "reset", "last", "kind"),
    [
        (Cause.CRASH, False, LONG, "restart"),
        (Cause.HUNG, False, LONG, "restart"),
        (Cause.ORDERED, False, LONG, None),
        (Cause.UNKNOWN, False, None, None),
        (Cause.WATCHDOG, True, LONG, "reset"),
        (Cause.CRASH, True, LONG, "reset"),
        (Cause.POWER, True, SHORT, None),
        (Cause.ORDERED, True, SHORT, None),
        (Cause.UNKNOWN, True, LONG, None),
        (Cause.UNKNOWN, True, SHORT, "doubt"),
    ],
)
def test_what_a_start_costs(cause: Cause, reset: bool, last: Run, kind: Kind | None) -> None:
    assert budget.cost(Verdict(cause, "", reset), last) == kind


def starts(*kinds: Kind | None, every_s: float, account: Account | None = None) -> Account:
    found, now_s = account or Account(), 1e6
    for kind in kinds:
        now_s += every_s
        found = budget.after_start(found, kind, LIMITS, now_s)
    return found


def test_resets_of_a_day_are_counted_and_others_are_not() -> None:
    assert starts("reset", "reset", None, None, "restart", every_s=60).safe is None
    spent = starts("reset", "reset", "reset", every_s=60)
    assert spent.safe
    assert "3 times within a day" in spent.safe.why
    assert starts("reset", "reset", "reset", every_s=DAY_S / 2).safe is None


def test_starts_for_no_known_cause_are_many_before_they_are_too_many() -> None:
    """Six flaps of a bad line end in no safe mode; a loop of resets does."""
    flaps: list[Kind] = ["doubt"] * (LIMITS.resets_max * budget.DOUBTS)
    once = starts(*flaps[1:], every_s=SHORT_S - 1)
    assert once.safe is None
    assert budget.resets_left(once, LIMITS, 1e6 + len(flaps) * SHORT_S) == 1
    loop = starts(*flaps, every_s=SHORT_S - 1)
    assert loop.safe
    assert "9 times (9 of them for no known cause)" in loop.safe.why
    assert starts(*flaps, every_s=DAY_S / 8).safe is None, "of a day"
    mixed = starts("reset", "reset", *flaps[: budget.DOUBTS], every_s=60)
    assert mixed.safe
    shipped = Limits(Watchdog().resets_per_day_max, 3600.0)
    account, now_s = Account(), 0.0
    for _ in range(shipped.resets_max * 2):
        now_s += 300.0
        account = budget.after_start(account, "doubt", shipped, now_s)
    assert account.safe is None


def test_a_time_to_come_counts_no_longer_than_one_that_was() -> None:
    book = Account((Spent("reset", 9e11),) * 3, Safe("", 9e11), 1, 9e11)
    found = budget.clamped(book, 1e6)
    assert budget.resets_left(found, LIMITS, 1e6) == 0
    assert budget.resets_left(found, LIMITS, 1e6 + DAY_S) == 3
    assert budget.leaves_in_s(found, LIMITS, 1e6 + LIMITS.safe_s) == 0
    assert found.left_s == 1e6


def test_restarts_in_a_loop_are_too_many_before_systemd_reboots() -> None:
    loop: list[Kind] = ["restart"] * LIMITS.restarts_max
    assert starts(*loop[1:], every_s=10).safe is None
    assert starts(*loop, every_s=10).safe
    assert starts(*loop, every_s=LIMITS.loop_s / (LIMITS.restarts_max - 1)).safe is None
    shipped = Watchdog()
    assert shipped.safe_mode_after < 10, "the unit's StartLimitBurst"
    assert shipped.safe_mode_window_s >= 600, "its StartLimitIntervalSec"


def test_safe_mode_ends_after_a_time_that_each_crash_begins_anew() -> None:
    found = starts("reset", "reset", "reset", every_s=60)
    entered_s = 1e6 + 180
    assert budget.leaves_in_s(found, LIMITS, entered_s + 600) == 3000
    found = budget.after_start(found, None, LIMITS, entered_s + 600)
    assert budget.leaves_in_s(found, LIMITS, entered_s + 600) == 3000, "a power cut costs nothing"
    found = budget.after_start(found, "restart", LIMITS, entered_s + 600)
    assert budget.leaves_in_s(found, LIMITS, entered_s + 600) == 3600
    assert budget.leaves_in_s(found, LIMITS, entered_s + 99_999) == 0
    assert budget.leaves_in_s(Account(), LIMITS, 5) is None


def test_each_entry_lasts_twice_as_long_up_to_a_bound_until_it_stayed_out_for_a_day() -> None:
    found, now_s, stays = Account(), 1e6, []
    for _ in range(7):
        for _ in range(3):
            found = budget.after_start(found, "reset", LIMITS, now_s)
        stays.append(budget.stay_s(found, LIMITS))
        now_s += stays[-1]
        found = budget.left(found, now_s)
        assert budget.resets_left(found, LIMITS, now_s) == 3, "anew"
    assert stays == [3600 * n for n in (1, 2, 4, 8, 16, 16, 16)]
    now_s += DAY_S
    for _ in range(3):
        found = budget.after_start(found, "reset", LIMITS, now_s)
    assert budget.stay_s(found, LIMITS) == 3600


def test_who_is_resumed_begins_as_if_nothing_had_been() -> None:
    found = budget.resumed(5.0)
    for _ in range(3):
        found = budget.after_start(found, "reset", LIMITS, 6.0)
    assert found.entered == 1


kinds: st.SearchStrategy[Kind | None] = st.sampled_from(["restart", "reset", "doubt", None])
steps = st.lists(st.tuples(kinds, st.floats(0, 200_000)), max_size=200)


@given(steps)
def test_what_is_kept_is_bounded_and_safe_mode_comes_with_the_last_reset(
    taken: list[tuple[Kind | None, float]],
) -> None:
    found, now_s = Account(), 0.0
    for kind, pause_s in taken:
        now_s += pause_s
        found = budget.after_start(found, kind, LIMITS, now_s)
        kept = budget.RESTARTS_KEPT + (1 + budget.DOUBTS) * budget.RESETS_KEPT
        assert len(found.spent) <= kept
        if kind in ("reset", "doubt") and budget.resets_left(found, LIMITS, now_s) == 0:
            assert found.safe
        if kind is None:
            continue
        lately = budget.within(found, "restart", LIMITS.loop_s, now_s)
        assert found.safe or lately < LIMITS.restarts_max
