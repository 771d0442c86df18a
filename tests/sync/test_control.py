"""Orders, what is kept of them and of the quota's day, and the conditions that say so."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.config import Store as Settings
from agent.errors import NotNow, StoreError
from agent.health.conditions import Condition, Conditions
from agent.hours import local_time
from agent.store.linkstate import NOTE_S, LinkState, Orders
from agent.store.outbox import Waiting
from agent.store.store import Store
from agent.sync.budget.control import Control
from agent.sync.budget.notices import Notices
from agent.sync.budget.pace import OVERHEAD_BYTES, Pace
from agent.sync.budget.progress import Progress
from agent.sync.budget.report import Report
from tests.sync.bent import Bent, settings

MIB = 1 << 20
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Over(Exception):
    """The test has seen enough."""


class Desk:
    """A control over a store, as app.py puts it together, on a clock that the test turns."""

    def __init__(self, store: Store, clock: Bent, **more: Any) -> None:
        link = settings(**more)
        self.clock = clock
        self.conditions = Conditions(clock)
        self.pace = Pace(link, clock, lambda asked: local_time(asked, UTC))
        self.progress = Progress(clock)
        self.waiting: Sequence[Waiting] = [Waiting(("e", "x"), 5, 3, 3000, 1.5)]
        self.hurried = 0
        self.report = Report(self.pace, self.progress, self._waits, self._link, clock)
        notices = Notices(link, self.pace, self.conditions, clock)
        self.control = Control(
            *(self.pace, self.progress, store.link, self.report, notices, self._hurry, clock)
        )

    async def _waits(self) -> Sequence[Waiting]:
        return self.waiting

    def _link(self) -> dict[str, Any]:
        return {"connected": True, "connected_s": self.clock.mono - 1000}

    def _hurry(self) -> None:
        self.hurried += 1

    def told(self) -> dict[str, Condition]:
        self.pace.look()
        self.control._notices.tell()
        return {one.name: one for one in self.conditions.all()}


@asynccontextmanager
async def opened(folder: Path, clock: Bent | None = None, **more: Any) -> AsyncIterator[Desk]:
    clock = clock or Bent(NOON)
    async with Store(Settings(path=str(folder / "s.db")), clock) as store:
        desk = Desk(store, clock, **more)
        async with desk.control:
            yield desk


@asynccontextmanager
async def killed(folder: Path, clock: Bent, **more: Any) -> AsyncIterator[Desk]:
    """The same, but its end is not told to the control."""
    async with Store(Settings(path=str(folder / "s.db")), clock) as store:
        desk = Desk(store, clock, **more)
        await desk.control.__aenter__()
        yield desk


async def test_orders_hold_over_a_crash(tmp_path: Path) -> None:
    clock = Bent(NOON)
    async with killed(tmp_path, clock) as desk:
        await desk.control.pause(7200)
        await desk.control.limit(4096, None)
    clock.pass_s(7199)
    async with killed(tmp_path, clock) as desk:
        assert not desk.pace.allows(live=True)
        assert desk.pace.rate.bytes_per_s_max == 4096
        await desk.control.limit(None, None)
        clock.pass_s(1)
        assert desk.pace.allows(live=True)
    async with killed(tmp_path, clock) as desk:
        assert desk.pace.orders == Orders()


async def test_an_order_for_a_time_runs_on_over_reboots_by_the_time_it_was_seen(
    tmp_path: Path,
) -> None:
    clock = Bent(NOON, boot="first")
    async with killed(tmp_path, clock) as desk:
        await desk.control.pause(7200)
        for _ in range(10):
            clock.pass_s(NOTE_S)
            await desk.control.note()
    clock = Bent(NOON, boot="second")
    clock.mono = 0.0
    async with killed(tmp_path, clock) as desk:
        assert desk.pace.orders.paused_until == 7200 - 10 * NOTE_S


async def test_a_store_that_cannot_be_read_is_a_backlog_that_is_not_known(tmp_path: Path) -> None:
    async with opened(tmp_path) as desk:
        await desk.report.look()
        assert desk.report.backlog_bytes == 3000

        async def fails() -> Sequence[Waiting]:
            raise StoreError("the disk is gone")

        desk.report._ask_waiting = fails
        with pytest.raises(StoreError):
            await desk.report.state()
        assert (desk.report.backlog_bytes, desk.report.last()["backlog"]) == (None, None)


async def test_an_order_is_in_force_only_once_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as desk:

        async def fails(*_: object) -> None:
            raise StoreError("the disk is gone")

        monkeypatch.setattr(desk.control._kept, "write", fails)
        with pytest.raises(StoreError):
            await desk.control.pause(None)
        assert desk.pace.allows(live=True)
        assert desk.told() == {}
        monkeypatch.undo()


async def test_orders_at_once_take_none_of_each_other_away(tmp_path: Path) -> None:
    clock = Bent(NOON)
    async with killed(tmp_path, clock, quota_bytes_per_day=MIB) as desk:
        desk.pace.spent(1)
        control = desk.control
        await asyncio.gather(
            *(control.note(), control.pause(None), control.note(), control.limit(2048, None)),
            control.note(),
        )
        expected = Orders(math.inf, 2048)
        assert desk.pace.orders == expected
    async with killed(tmp_path, clock) as desk:
        assert desk.pace.orders == expected


async def test_a_crash_forgets_what_was_sent_since_the_last_note_alone(tmp_path: Path) -> None:
    clock = Bent(NOON)
    quota = {"quota_bytes_per_day": MIB}
    async with killed(tmp_path, clock, **quota) as desk:
        desk.pace.spent(100_000)
        await desk.control.note()
        desk.pace.spent(7)
    async with opened(tmp_path, clock, **quota) as desk:
        assert desk.pace.quota.day.used_bytes == 100_000 + OVERHEAD_BYTES
        desk.pace.spent(7)
    async with opened(tmp_path, clock, **quota) as desk:
        assert desk.pace.quota.day.used_bytes == 100_007 + 2 * OVERHEAD_BYTES
        clock.pass_s(12 * 3600)
        assert desk.pace.allows(live=True)
        assert desk.pace.quota.day.used_bytes == 0


async def test_it_is_noted_once_in_note_s_and_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = Bent(NOON), list[int]()
    async with opened(tmp_path, clock, quota_bytes_per_day=MIB) as desk:
        write = desk.control._kept.write

        async def counted(orders: Orders, day: Any) -> None:
            written.append(day.used_bytes)
            await write(orders, day)

        async def turned(seconds: float) -> None:
            clock.pass_s(seconds)
            if clock.mono >= 1000 + 5 * NOTE_S:
                raise Over
            if clock.mono < 1000 + 3 * NOTE_S:
                desk.pace.spent(0)

        monkeypatch.setattr(desk.control._kept, "write", counted)
        monkeypatch.setattr(asyncio, "sleep", turned)
        with pytest.raises(Over):
            await desk.control.run()
        monkeypatch.undo()
        assert len(written) == 3
        assert written == [n * int(NOTE_S) * OVERHEAD_BYTES for n in (1, 2)] + [
            (3 * int(NOTE_S) - 1) * OVERHEAD_BYTES
        ]


async def test_a_file_that_takes_the_place_of_a_damaged_one_learns_the_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as desk:
        await desk.control.pause(None)
        kept = desk.control._kept
        await kept._database.write(lambda c: c.execute("DELETE FROM link").rowcount)
        await desk.control.note()
        assert await kept.read() is None, "nothing is new"
        monkeypatch.setattr(LinkState, "epoch", "another")
        await desk.control.note()
        assert (await kept.read())[0] == Orders(math.inf)


async def test_now_hurries_and_lifts_the_rate_unless_it_may_not(tmp_path: Path) -> None:
    more = {"quota_bytes_per_day": MIB, "rate_bytes_per_s_max": 1024}
    async with opened(tmp_path, **more) as desk:
        desk.control.now(None)
        assert (desk.hurried, desk.pace.rate.why) == (1, "settings")
        desk.control.now(60)
        assert (desk.hurried, desk.pace.rate.why) == (2, "now")
        await desk.control.pause(None)
        with pytest.raises(NotNow, match="paused"):
            desk.control.now(None)
        await desk.control.resume()
        desk.pace.spent(MIB)
        with pytest.raises(NotNow, match="quota"):
            desk.control.now(None)
        assert desk.hurried == 2


async def test_conditions_say_what_holds_and_when_it_ends(tmp_path: Path) -> None:
    hours = [{"begin": "22:00", "end": "06:00", "rate_bytes_per_s_max": None}]
    async with opened(tmp_path, hours=hours, quota_bytes_per_day=MIB) as desk:
        assert desk.told() == {}
        await desk.control.pause(7200)
        await desk.control.limit(4096, None)
        told = desk.told()
        assert told.keys() == {"sync_paused", "sync_limited"}
        assert {one.severity for one in told.values()} == {"note"}
        assert "until 2026-05-01 14:00" in told["sync_paused"].cause
        assert "4096 bytes/s" in told["sync_limited"].cause
        assert "until it is taken back" in told["sync_limited"].cause
        cause = told["sync_paused"].cause
        desk.clock.pass_s(59)
        desk.clock.wall_s -= 0.9  # it drifts
        assert desk.told()["sync_paused"].cause == cause
        desk.clock.pass_s(7141)
        assert desk.told().keys() == {"sync_limited"}
        await desk.control.limit(None, None)
        assert desk.told() == {}


async def test_a_quota_that_is_reached_is_a_warning(tmp_path: Path) -> None:
    async with opened(tmp_path, quota_bytes_per_day=MIB) as desk:
        desk.pace.spent(950_000)
        told = desk.told()["quota_reached"]
        assert told.severity == "warning"
        assert "only live records" in told.cause
        assert "until midnight" in told.cause
        desk.pace.spent(100_000)
        assert "nothing but heartbeats" in desk.told()["quota_reached"].cause
        desk.clock.true = False
        assert "24 h of running time" in desk.told()["quota_reached"].cause
        desk.clock.true = True
        desk.clock.pass_s(12 * 3600)
        assert desk.told() == {}


async def test_hours_that_nobody_can_follow_are_told(tmp_path: Path) -> None:
    hours = [{"begin": "22:00", "end": "06:00", "rate_bytes_per_s_max": None}]
    clock = Bent(NOON)
    clock.true = False
    async with opened(tmp_path, clock, hours=hours) as desk:
        assert desk.told()["hours_not_followed"].severity == "note"
        await desk.control.pause(60)
        assert "for 60 s" in desk.told()["sync_paused"].cause
        clock.true = True
        assert "until 2026-05-01 12:01" in desk.told()["sync_paused"].cause
        assert "hours_not_followed" not in desk.told()


async def test_the_report_has_what_is_known_and_null_for_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path, quota_bytes_per_day=10 * MIB) as desk:
        assert desk.report.last()["backlog"] is None
        state = await desk.report.state()
        assert state["backlog"]["streams"] == [
            {"epoch": "e", "name": "x", "priority": 5, "records": 3, "bytes": 3000}
            | {"oldest_age_s": 1.5}
        ]
        assert (state["eta_s"], state["last_ack_age_s"], state["paused"]) == (None, None, False)
        assert set(state["rate"].values()) == {None}
        assert state["limit"] == {"rate_bytes_per_s_max": None, "why": "settings", "for_s": None}
        for _ in range(10):
            desk.clock.pass_s(1)
            desk.progress.sent(100)
            desk.progress.acknowledged(1, 300)
            desk.progress.mark(30_000)
        state = await desk.report.state()
        assert state["eta_s"] is None, "as much comes as goes"
        for step in range(60):
            desk.clock.pass_s(1)
            desk.progress.acknowledged(1, 300)
            desk.progress.mark(30_000 - step * 300)
        desk.waiting = [Waiting(("e", "x"), 5, 40, 12_000, 1.5), Waiting(("e", "y"), 9, 0, 0, None)]
        state = await desk.report.state()
        assert state["eta_s"] == pytest.approx(40, rel=0.2)
        assert (state["last_ack_age_s"], state["acknowledged_records"]) == (0, 70)
        assert state["backlog"]["records"] == 40
        assert [one["name"] for one in state["backlog"]["streams"]] == ["x"]
        await desk.control.pause(90)
        state = await desk.report.state()
        assert (state["paused"], state["paused_for_s"], state["eta_s"]) == (True, 90, None)
        assert state["quota"]["left_bytes"] == 10 * MIB
        assert state["quota"]["begins_anew_s"] == 12 * 3600 - 70
