"""What the link remembers: over restarts, over reboots on the running clock, in a new file."""

import math
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.config import Store as Settings
from agent.store.linkstate import Day, Orders
from agent.store.store import Store
from tests.store.test_schema import old_store
from tests.sync.bent import Bent

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def opened(folder: Path, clock: Bent) -> Store:
    return Store(Settings(path=str(folder / "s.db")), clock)


async def test_a_new_store_remembers_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, Bent(NOW)) as store:
        assert await store.link.read() is None


@pytest.mark.parametrize(
    ("orders", "day"),
    [
        (Orders(), Day(5.0)),
        (Orders(math.inf), Day(-7.5, "2026-05-01", 1 << 50)),
        (Orders(2000.0, 4096, 3000.0), Day(1000.0, "", 3)),
        (Orders(None, 4096), Day(1000.0, "2026-05-01", 3)),
    ],
)
async def test_what_was_kept_last_is_there_after_a_restart(
    tmp_path: Path, orders: Orders, day: Day
) -> None:
    clock = Bent(NOW)
    async with opened(tmp_path, clock) as store:
        await store.link.write(Orders(1.0, 1, 1.0), Day(1.0, "x", 1))
        await store.link.write(orders, day)
        assert await store.link.read() == (orders, day)
    async with opened(tmp_path, clock) as store:
        assert await store.link.read() == (orders, day)


async def test_over_a_reboot_time_runs_on_where_it_was_seen_last(tmp_path: Path) -> None:
    first = Bent(NOW, boot="first")
    async with opened(tmp_path, first) as store:
        await store.link.write(Orders(first.mono + 7200, 4096, first.mono + 100), Day(first.mono))
        first.pass_s(600)
        await store.link.write(*await store.link.read())  # the boot is seen alive in each commit
    second = Bent(NOW, boot="second")
    second.mono = 20.0
    async with opened(tmp_path, second) as store:
        orders, day = await store.link.read()
        # The 20 s before the agent began in this boot are running time, too.
        assert orders.paused_until == 6600
        assert orders.limit_until == -500
        assert day.begun == -600


async def test_a_store_of_a_former_version_takes_it(tmp_path: Path) -> None:
    old_store(tmp_path / "s.db", 9)
    clock = Bent(NOW)
    async with opened(tmp_path, clock) as store:
        assert await store.link.read() is None
        await store.link.write(Orders(math.inf), Day(2.0, "", 7))
        assert await store.link.read() == (Orders(math.inf), Day(2.0, "", 7))
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert db.execute("SELECT count(*) FROM link").fetchone() == (1,)
    db.close()
