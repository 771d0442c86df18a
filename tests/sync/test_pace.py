"""The line's budget, with a clock that the test turns: rates, hours, days, orders."""

import math
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from agent.hours import local_time, next_day_s
from agent.store.linkstate import Day, Orders
from agent.sync.budget.pace import LOOK_S, OVERHEAD_BYTES, Pace
from agent.sync.budget.quota import DAY_S
from tests.sync.bent import BEGIN_S, Bent, paced, sent_until

BERLIN = ZoneInfo("Europe/Berlin")
MIB = 1 << 20
NIGHT = {"begin": "22:00", "end": "06:00", "rate_bytes_per_s_max": 100_000}
NOON = {"begin": "12:00", "end": "13:00", "rate_bytes_per_s_max": None}


def at(*when: int, zone: ZoneInfo = BERLIN) -> Bent:
    return Bent(datetime(*when, tzinfo=zone))  # type: ignore[arg-type, misc]


def for_s(pace: Pace, clock: Bent, seconds: float, size_bytes: int = 5000) -> int:
    end = clock.mono + seconds
    return sent_until(pace, clock, lambda: clock.mono >= end, size_bytes)


def why(pace: Pace) -> tuple[int | None, str]:
    pace.look()
    return pace.rate.bytes_per_s_max, pace.rate.why


@pytest.mark.parametrize("size_bytes", [1, 700, 50_000])
def test_over_hours_no_more_goes_than_the_rate_allows_and_hardly_less(size_bytes: int) -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=2048)
    sent = for_s(pace, clock, 7200, size_bytes)
    message = size_bytes + OVERHEAD_BYTES
    assert 7200 * 2048 - message <= sent <= 7201 * 2048 + message


def test_any_stretch_of_time_is_within_rate_burst_and_a_message() -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=4096)
    for idle_s in (0.0, 0.3, 1.0, 3600.0):
        clock.pass_s(idle_s)
        assert for_s(pace, clock, 10, 3000) <= 11 * 4096 + 3000 + OVERHEAD_BYTES


def test_without_a_rate_nothing_waits() -> None:
    pace = paced(at(2026, 5, 1, 8), BERLIN)
    for _ in range(1000):
        pace.spent(100_000)
        assert pace.wait_s(100_000, live=False) == 0


@pytest.mark.parametrize(
    ("hour", "minute", "expected"),
    [
        (21, 59, (5000, "settings")),
        (22, 0, (100_000, "hours")),
        (5, 59, (100_000, "hours")),
        (6, 0, (5000, "settings")),
        (12, 0, (None, "hours")),
        (12, 59, (None, "hours")),
        (13, 0, (5000, "settings")),
    ],
)
def test_hours_hold_from_their_begin_to_their_end_past_midnight_too(
    hour: int, minute: int, expected: tuple[int | None, str]
) -> None:
    clock = at(2026, 5, 1, hour, minute)
    assert why(paced(clock, BERLIN, rate_bytes_per_s_max=5000, hours=[NIGHT, NOON])) == expected


def test_the_first_entry_counts_and_one_that_ends_as_it_begins_holds_all_day() -> None:
    always = {"begin": "07:00", "end": "07:00", "rate_bytes_per_s_max": 7777}
    clock = at(2026, 5, 1, 12, 30)
    assert why(paced(clock, BERLIN, hours=[NIGHT, always, NOON])) == (7777, "hours")
    assert why(paced(clock, BERLIN, hours=[NOON, always])) == (None, "hours")


def test_a_night_sends_what_its_hours_allow_and_the_day_what_the_base_does() -> None:
    clock = at(2026, 5, 1, 20)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=1024, hours=[NIGHT])
    sent = for_s(pace, clock, 12 * 3600, 20_000)  # 20:00 to 08:00
    expected = 4 * 3600 * 1024 + 8 * 3600 * 100_000
    assert sent == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 7), ((2026, 10, 25), 9)])
def test_a_night_in_which_the_clocks_change_is_shorter_or_longer(
    day: tuple[int, int, int], hours: int
) -> None:
    begin = datetime(*day, 12, tzinfo=BERLIN) - timedelta(days=1)
    clock = Bent(begin)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=1024, hours=[NIGHT])
    asleep = 0
    for _ in range(24 * 60):
        asleep += why(pace)[1] == "hours"
        clock.pass_s(60)
    assert asleep == hours * 60


def test_while_the_clock_is_not_trusted_the_base_rate_holds() -> None:
    clock = at(2026, 5, 1, 23)
    clock.true = False
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=5000, hours=[NIGHT])
    assert (why(pace), pace.local) == ((5000, "settings"), None)
    clock.true = True
    clock.pass_s(LOOK_S)
    pace.allows(live=True)  # whoever asks has it looked at
    assert pace.rate.why == "hours"


def test_the_last_tenth_of_the_quota_is_for_live_records() -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, quota_bytes_per_day=10 * MIB)
    dawn = clock.mono + 1
    old = sent_until(pace, clock, lambda: clock.mono >= dawn, 50_000)
    assert 9 * MIB <= old < 9 * MIB + 51_000
    assert (pace.quota.reached, pace.allows(live=True), pace.allows(live=False)) == (
        *("backlog", True, False),
    )
    live = sent_until(pace, clock, lambda: clock.mono >= dawn + 9, 50_000, live=True)
    assert 10 * MIB <= old + live < 10 * MIB + 51_000
    assert (pace.quota.reached, pace.allows(live=True)) == ("all", False)
    assert pace.quota.left_bytes == 0


def test_the_quota_begins_anew_at_midnight() -> None:
    clock = at(2026, 5, 1, 23)
    pace = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    end = clock.mono + 3599
    first = sent_until(pace, clock, lambda: clock.mono >= end, live=True)
    assert pace.quota.reached == "all"
    assert pace.quota.begins_anew_s(pace.local, clock.mono) == pytest.approx(1, abs=LOOK_S)
    second = sent_until(pace, clock, lambda: clock.mono >= end + 3600, live=True)
    assert first == second
    assert pace.quota.begins_anew_s(pace.local, clock.mono) == pytest.approx(23 * 3600, abs=2)


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25)])
def test_a_day_in_which_the_clocks_change_is_one_day(day: tuple[int, int, int], hours: int) -> None:
    clock = Bent(datetime(*day, tzinfo=BERLIN))
    pace = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    assert pace.quota.begins_anew_s(pace.local, clock.mono) == hours * 3600
    pace.spent(MIB)
    clock.pass_s(hours * 3600 - 1)
    pace.look()
    assert pace.quota.reached == "all"
    clock.pass_s(1)
    pace.look()
    assert pace.quota.reached == ""


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25)])
def test_without_a_zone_the_time_is_the_machines(
    day: tuple[int, int, int], hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        clock = Bent(datetime(*day, tzinfo=BERLIN))
        found = local_time(clock)
        assert found == datetime(*day)
        assert next_day_s(found) == hours * 3600
        clock.true = False
        assert local_time(clock) is None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_without_a_trusted_clock_the_quota_counts_24_hours_of_running_time() -> None:
    clock = at(1970, 1, 1, 23)
    clock.true = False
    pace = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    sent = [
        sent_until(pace, clock, lambda end=end: clock.mono >= end, live=True)
        for end in (BEGIN_S + DAY_S - 1, BEGIN_S + 2 * DAY_S - 1, BEGIN_S + 3 * DAY_S - 1)
    ]
    assert sent[0] == sent[1] == sent[2]
    assert MIB <= sent[0] <= MIB + 6000


def test_a_clock_that_comes_to_be_trusted_gives_no_second_quota() -> None:
    clock = at(1970, 1, 1, 0)
    clock.true = False
    pace = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    pace.spent(MIB)
    clock.pass_s(3600)
    clock.true, clock.wall_s = True, at(2026, 5, 1, 8).wall_s
    pace.look()
    assert (pace.quota.reached, pace.quota.day.date) == ("all", "2026-05-01")
    clock.true = False
    pace.look()
    assert pace.quota.reached == "all"
    clock.true = True
    clock.pass_s(16 * 3600)
    pace.look()
    assert (pace.quota.reached, pace.quota.day.date) == ("", "2026-05-02")


@pytest.mark.parametrize("days", [-3000, -1, 1, 3000])
def test_a_clock_that_jumps_gives_one_quota_at_most_and_takes_none_for_long(days: int) -> None:
    clock = at(2026, 5, 1, 12)
    pace = paced(clock, BERLIN, quota_bytes_per_day=MIB, rate_bytes_per_s_max=100_000)
    total = [0, 0]
    for minute in range(2 * 24 * 60):
        if minute in (10, 20, 30, 40):
            clock.wall_s += (days if minute in (10, 30) else -days) * DAY_S
        end = clock.mono + 60
        total[minute // 1440] += sent_until(
            pace, clock, lambda end=end: clock.mono >= end, live=True
        )
    # In the first 24 h there is a midnight, too; what a wrong clock began lasts 24 h.
    anew = 1 if days < 0 else 2
    assert MIB <= total[0] <= (1 + anew) * (MIB + 6000)
    assert MIB <= total[1] <= 2 * (MIB + 6000)


def test_the_rate_knows_nothing_of_wall_time() -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=2048)
    total = 0
    for jump_s in (0, -1e9, 3e9, -3600, 7200):
        clock.wall_s += jump_s
        total += for_s(pace, clock, 600)
    assert total == pytest.approx(5 * 600 * 2048, rel=0.01)


@pytest.mark.parametrize("seconds", [3600.0, None])
def test_a_pause_holds_everything_back_for_its_time(seconds: float | None) -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN)
    pace.order(Orders(math.inf if seconds is None else clock.mono + seconds))
    clock.pass_s(3599)
    assert pace.wait_s(1, live=True) == LOOK_S
    assert not pace.allows(live=True)
    clock.pass_s(1)
    assert pace.allows(live=True) is (seconds is not None)
    pace.order(Orders())
    assert pace.wait_s(1, live=False) == 0


def test_what_is_owed_waits_for_the_rate_alone_and_is_counted() -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=2048, quota_bytes_per_day=MIB)
    pace.order(Orders(math.inf))
    pace.spent(MIB)
    assert pace.quota.reached == "all"
    assert pace.wait_s(1000, live=True, owed=True) > 0, "the rate has a debt"
    clock.pass_s(600)
    assert pace.wait_s(1000, live=True) == LOOK_S
    assert pace.wait_s(1000, live=True, owed=True) == 0


def test_an_order_about_the_rate_stands_above_the_hours_and_now_above_it() -> None:
    clock = at(2026, 5, 1, 23)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=5000, hours=[NIGHT], quota_bytes_per_day=MIB)
    assert why(pace) == (100_000, "hours")
    pace.order(Orders(None, 2000, clock.mono + 100))
    assert why(pace) == (2000, "order")
    assert for_s(pace, clock, 50, 1000) == pytest.approx(50 * 2000, rel=0.05)
    pace.lift(10)
    assert why(pace) == (None, "now")
    clock.pass_s(10)
    assert why(pace) == (2000, "order")
    clock.pass_s(41)
    assert why(pace) == (100_000, "hours")
    assert pace.orders == Orders()
    pace.lift(1000)
    end = clock.mono + 500
    sent = sent_until(pace, clock, lambda: clock.mono >= end, live=True)
    assert sent < MIB, "the quota is never lifted"


def test_a_restart_goes_on_with_the_day_that_was_noted() -> None:
    clock = at(2026, 5, 1, 12)
    first = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    first.spent(700_000)
    again = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    again.spent(1000)
    again.restore(Orders(), first.quota.day)
    assert again.quota.day.used_bytes == 701_000 + 2 * OVERHEAD_BYTES
    later = paced(clock, BERLIN, quota_bytes_per_day=MIB)
    later.restore(Orders(), Day(BEGIN_S - 99_999, "2026-04-30", 900_000))
    assert later.quota.day == Day(clock.mono, "2026-05-01")


def test_a_message_is_small_where_the_line_is_thin() -> None:
    clock = at(2026, 5, 1, 12, zone=ZoneInfo("UTC"))
    assert paced(clock, UTC).message_bytes_max == 131_072
    assert paced(clock, UTC, rate_bytes_per_s_max=1024).message_bytes_max == 8192
    assert paced(clock, UTC, rate_bytes_per_s_max=30_000).message_bytes_max == 60_000
    assert paced(clock, UTC, quota_bytes_per_day=MIB).message_bytes_max == MIB // 10


def test_other_settings_hold_at_once_and_what_the_day_has_used_goes_on() -> None:
    clock = at(2026, 5, 1, 8)
    pace = paced(clock, BERLIN, rate_bytes_per_s_max=2048)
    pace.spent(MIB)
    used_bytes = pace.quota.day.used_bytes
    other = paced(clock, BERLIN, rate_bytes_per_s_max=4096, quota_bytes_per_day=MIB, heartbeat_s=7)
    pace.change(other._settings)
    assert why(pace) == (4096, "settings")
    assert pace.quota.day.used_bytes == used_bytes
    assert pace.quota.reached == "all"
    pace.order(Orders(None, 1024, math.inf))
    pace.change(other._settings)
    assert why(pace) == (1024, "order"), "an order goes on"
