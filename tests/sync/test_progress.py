"""Rates and the time to empty: what is measured, and what is not known."""

from datetime import UTC, datetime

import pytest

from agent.sync.budget.progress import KNOWN_AFTER_S, NEWEST_S, WINDOW_S, Progress, Rates, eta_s
from tests.sync.bent import Bent


class Line:
    """A backlog that loses and gains so many bytes in each second."""

    def __init__(self, backlog_bytes: int) -> None:
        self.clock = Bent(datetime(2026, 5, 1, tzinfo=UTC))
        self.progress = Progress(self.clock)
        self.backlog_bytes = backlog_bytes
        self.since = self.clock.mono

    def run(self, seconds: int, gone: int, come: int, records: int = 1) -> None:
        for second in range(seconds):
            self.clock.pass_s(1)
            self.backlog_bytes += come - gone
            self.progress.sent(gone // 4)
            if gone:
                self.progress.acknowledged(records, gone)
            self.progress.mark(None if second % 5 else self.backlog_bytes)

    @property
    def rates(self) -> Rates:
        return self.progress.rates(self.since)

    @property
    def eta_s(self) -> float | None:
        return eta_s(self.backlog_bytes, self.rates)


def test_nothing_is_known_at_first_nor_without_a_link() -> None:
    line = Line(10_000)
    assert (line.rates, line.eta_s) == (Rates(), None)
    line.run(int(KNOWN_AFTER_S) - 1, 100, 0)
    assert line.rates == Rates()
    line.run(60, 100, 0)
    assert line.rates != Rates()
    assert line.progress.rates(None) == Rates()


def test_steady_rates_and_the_time_to_empty() -> None:
    line = Line(1_000_000)
    line.run(90, 3000, 1000, records=30)
    rates = line.rates
    assert rates.sent_bytes_per_s == pytest.approx(750)
    assert rates.acknowledged_records_per_s == pytest.approx(30)
    assert rates.acknowledged_bytes_per_s == pytest.approx(3000)
    assert rates.arriving_bytes_per_s == pytest.approx(1000)
    assert line.eta_s == pytest.approx(line.backlog_bytes / 2000)


@pytest.mark.parametrize(("gone", "come"), [(0, 0), (1000, 1000), (1000, 5000)])
def test_a_backlog_that_does_not_shrink_has_no_end(gone: int, come: int) -> None:
    line = Line(1_000_000)
    line.run(90, gone, come)
    assert line.rates.arriving_bytes_per_s == come
    assert line.eta_s is None


def test_soon_after_production_has_ended_the_backlog_has_an_end() -> None:
    line = Line(1_000_000)
    line.run(90, 1000, 5000)
    assert line.eta_s is None
    line.run(int(NEWEST_S) + 5, 1000, 0)
    assert line.rates.arriving_bytes_per_s == 0
    assert line.eta_s == pytest.approx(line.backlog_bytes / 1000)
    line.run(int(WINDOW_S), 1000, 5000)
    assert line.eta_s is None, "and none when it begins again"


def test_an_empty_backlog_is_empty_now() -> None:
    assert Line(0).eta_s == 0


def test_what_was_longer_ago_than_the_window_is_forgotten() -> None:
    line = Line(10_000_000)
    line.run(300, 50_000, 0)
    line.run(int(WINDOW_S), 1000, 0)
    assert line.rates.acknowledged_bytes_per_s == pytest.approx(1000)
    assert len(line.progress._marks) <= WINDOW_S + 1


def test_what_was_before_the_link_came_up_is_no_rate_of_it() -> None:
    line = Line(10_000_000)
    line.run(40, 0, 2000)
    line.since = line.clock.mono
    line.run(10, 5000, 0)
    assert line.rates.acknowledged_bytes_per_s == pytest.approx(5000)
    assert line.rates.arriving_bytes_per_s == pytest.approx(0)


def test_what_was_given_up_does_not_come_in_negative_numbers() -> None:
    line = Line(10_000_000)
    line.run(30, 100, -50_000)
    assert line.rates.arriving_bytes_per_s == 0
    assert line.eta_s == pytest.approx(line.backlog_bytes / 100)


def test_a_store_that_is_seldom_looked_at_has_a_rate_all_the_same() -> None:
    """One whose disk is slow: the last look may be the only one of the last seconds."""
    line = Line(10_000)
    line.progress.mark(10_000)
    line.clock.pass_s(WINDOW_S / 2)
    line.progress.mark(10_000 + 500 * int(WINDOW_S / 2))
    assert line.rates.arriving_bytes_per_s == pytest.approx(500)
