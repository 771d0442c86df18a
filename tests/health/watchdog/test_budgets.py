"""What was tried is remembered over restarts and reboots, and for no longer than it counts."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from agent.health.watchdog.budgets import BUDGET_S_MAX, KEEP_S, Budgets
from agent.health.watchdog.chronicle import Chronicle
from agent.health.watchdog.policy import Taken
from tests.health.watchdog.test_watchdog import Still


def clock_at(now_s: float, boot: str = "one") -> Still:
    clock = Still()
    clock.now_s, clock.boot = now_s, boot
    return clock


async def written(path: Path, clock: Still, now_s: float, *taken: Taken) -> None:
    budgets = Budgets(path, clock)
    async with budgets.file:
        budgets.note(now_s, {"store": taken, "uplink": ()})


async def test_within_a_boot_the_axis_goes_on_by_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    await written(path, clock_at(500.0), 40.0, Taken("agent", 30.0))
    after = Budgets(path, clock_at(520.0))
    assert after.begun_s == 60.0
    assert after.before().get("store", ()) == (Taken("agent", 30.0),)
    assert after.before().get("uplink", ()) == after.before().get("nothing", ()) == ()


async def test_after_a_reboot_it_goes_on_by_what_the_machine_has_been_up(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    await written(path, clock_at(500.0), 40.0, Taken("reboot", 40.0))
    after = Budgets(path, clock_at(25.0, boot="two"))
    assert after.begun_s == 65.0
    assert after.before().get("store", ()) == (Taken("reboot", 40.0),)


async def test_what_no_longer_counts_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    now_s = 2 * BUDGET_S_MAX
    await written(path, clock_at(0.0), now_s, Taken("agent", 5.0), Taken("agent", now_s))
    assert Budgets(path, clock_at(1.0)).before().get("store", ()) == (Taken("agent", now_s),)
    assert Budgets(path, clock_at(BUDGET_S_MAX + 1.0)).before().get("store", ()) == ()


async def test_time_is_noted_while_something_is_remembered(tmp_path: Path) -> None:
    budgets = Budgets(tmp_path / "ladder.json", clock_at(0.0))
    assert not budgets.due(10 * KEEP_S), "nothing was ever tried: the disk is spared"
    budgets.note(0.0, {"store": (Taken("agent", 0.0),)})
    assert not budgets.due(KEEP_S - 1)
    assert budgets.due(KEEP_S)
    budgets.note(BUDGET_S_MAX + 1, {"store": (Taken("agent", 0.0),)})
    assert not budgets.due(2 * BUDGET_S_MAX)


async def test_whoever_ends_the_agent_may_wait_until_it_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    budgets = Budgets(path, clock_at(0.0))
    await budgets.file.kept()  # nothing to wait for
    running = asyncio.create_task(budgets.file.run())
    budgets.note(7.0, {"store": (Taken("agent", 7.0),)})
    await budgets.file.kept()
    assert Budgets(path, clock_at(0.0)).before().get("store", ()) == (Taken("agent", 7.0),)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[]", bytes(2 << 20)),
        b'{"boot": "one", "at_s": 0, "now_s": 1e300, "taken": {}}',
        b'{"boot": "one", "at_s": -5, "now_s": 0, "taken": {}}',
    ],
)
async def test_a_file_that_is_none_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ladder.json").write_bytes(content)
    begun = Budgets(tmp_path / "ladder.json", clock_at(500.0))
    assert begun.begun_s == 0.0
    assert begun.before().get("store", ()) == ()


async def test_a_time_to_come_does_not_count_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ladder.json"
    await written(path, clock_at(0.0), 10.0, Taken("agent", 1e9))
    assert Budgets(path, clock_at(5.0)).before().get("store", ()) == (Taken("agent", 15.0),)


async def test_a_folder_that_cannot_be_written_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "none").write_bytes(b"")  # where the folder should be
    await written(tmp_path / "none" / "ladder.json", clock_at(0.0), 1.0, Taken("agent", 1.0))
    assert "File exists" in caplog.text


@pytest.mark.parametrize("kind", ["nested", "pipe"])
def test_a_file_that_is_another_thing_keeps_no_agent_from_beginning(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "ladder.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b'{"x":' + b"[" * 200_000)
    assert Budgets(path, clock_at(5.0)).before() == {}
    assert Chronicle(path, kept, clock_at(5.0)).last() == []


async def kept(_: object) -> None:
    raise AssertionError("there is nothing to send")
