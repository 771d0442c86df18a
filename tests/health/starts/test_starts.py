"""Starts one after the other on a real file, with a clock and hardware that tests bend."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import Clock
from agent.errors import NotNow
from agent.health.conditions import Conditions
from agent.health.starts import book
from agent.health.starts.budget import DAY_S, PAUSE_S, Limits
from agent.health.starts.causes import Cause
from agent.health.starts.starts import Places, Starts
from agent.health.watchdog.watchdog import Event
from agent.host.wdt import HardwareWatchdog
from agent.inference.domains.hold import Hold
from tests.outside import ROOT
from tests.store.faults.disk import small
from tests.store.faults.test_disk_full import fill

LIMITS = Limits(resets_max=3, safe_s=3600.0, pause_s=PAUSE_S)
TEN_YEARS_S = 10 * 365 * DAY_S


class Bent(Clock):
    """A machine's clocks: a monotonic one for each boot, and a wall clock that is anything."""

    def __init__(self) -> None:
        self.boot, self.mono_s, self.wall_s = "boot-1", 50.0, 1.7e9

    def monotonic(self) -> float:
        return self.mono_s

    def wall(self) -> float:
        return self.wall_s


class Machine:
    """Agents that begin and end on it, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.clock = Bent()
        self.folder = folder
        self.places = Places(
            *(folder / "starts.json", folder / "status.json", folder / "hung.txt"),
            folder / "pstore",
        )
        self.sysfs = folder / "sys" / "watchdog0"
        self.bootstatus: int | None = 0
        self.events: list[Event] = []
        self.starts: Starts | None = None

    def begin(self) -> Starts:
        """An agent begins; the one before is gone."""
        if self.starts and self.starts._lock is not None:
            os.close(self.starts._lock)
        self.conditions, self.hold = Conditions(self.clock), Hold()
        self.starts = Starts(
            *(self.places, self._causes, LIMITS, self.hold, self.events.append),
            *(self.conditions, self.clock),
        )
        self.starts.begin()
        return self.starts

    def _causes(self) -> tuple[str, ...] | None:
        if self.bootstatus is None:
            return None
        self.sysfs.mkdir(parents=True, exist_ok=True)
        (self.sysfs / "identity").write_text("i6300ESB timer\n")
        (self.sysfs / "bootstatus").write_text(f"{self.bootstatus}\n")
        found = HardwareWatchdog(Path("/dev/watchdog0"), self.sysfs.parent).found()
        assert found
        return found.causes

    def live(self, seconds: float) -> None:
        """Time goes by, and the status snapshot is written."""
        self.clock.mono_s += seconds
        alive = {"boot": self.clock.boot, "mono_s": self.clock.mono_s}
        self.places.snapshot.write_bytes(msgspec.json.encode({"alive": alive, "ledger": {}}))

    def goes_down(self, bootstatus: int | None = 0) -> None:
        """It begins anew; its hardware says why."""
        self.clock.boot += "-"
        self.clock.mono_s = 20.0
        self.bootstatus = bootstatus

    def held(self) -> set[str]:
        return {one.name for one in self.conditions.all()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_causes_one_after_the_other(machine: Machine) -> None:
    causes: list[Cause] = []
    for step in (lambda: None, lambda: None, machine.goes_down, lambda: machine.goes_down(32)):
        machine.live(60)
        step()
        causes.append(machine.begin().verdict.cause)
    machine.places.hung.write_text("stacks")
    causes.append(machine.begin().verdict.cause)
    assert causes == [Cause.UNKNOWN, Cause.CRASH, Cause.POWER, Cause.WATCHDOG, Cause.HUNG]
    assert machine.starts
    assert machine.starts.counts == dict.fromkeys(Cause, 1) | {Cause.ORDERED: 0}
    assert [one.remedy for one in machine.events] == ["start"] * 4, "the first is no news"
    assert "the cause: hung" in machine.events[-1].outcome


async def test_an_end_in_order_and_one_to_begin_anew_are_told_apart(machine: Machine) -> None:
    await machine.begin().ends("told")
    assert machine.begin().verdict.cause is Cause.ORDERED
    await machine.begin().ends("again", "store stood still")
    verdict = machine.begin().verdict
    assert verdict.cause is Cause.HUNG
    assert "store stood still" in verdict.why


async def test_an_error_that_ends_the_agent_is_what_the_next_start_names(machine: Machine) -> None:
    found = machine.begin()
    await found.__aexit__(None, ExceptionGroup("loops", [ValueError("no such thing")]), None)
    verdict = machine.begin().verdict
    assert verdict.cause is Cause.CRASH
    assert "ValueError: no such thing" in verdict.why
    assert machine.starts
    await machine.starts.ends("told")
    await machine.starts.__aexit__(None, ValueError("while it ended"), None)
    assert machine.begin().verdict.cause is Cause.ORDERED


async def test_a_mark_holds_for_the_next_boot_and_for_a_while(machine: Machine) -> None:
    await machine.begin().mark(Cause.WATCHDOG, "its ladder was at its end")
    machine.live(10)
    machine.goes_down()
    verdict = machine.begin().verdict
    assert verdict == (Cause.WATCHDOG, "its ladder was at its end", True)
    assert machine.starts
    assert machine.starts.resets_left == 2, "it costs"
    await machine.starts.mark(Cause.ORDERED, "somebody asked for it")
    machine.live(3600)
    machine.goes_down()
    assert machine.begin().verdict.cause is Cause.POWER, "that reboot never came"


def test_a_kernel_that_panicked_is_known_by_what_is_new(machine: Machine) -> None:
    machine.places.panics.mkdir()
    (machine.places.panics / "1700000000").mkdir()
    machine.begin()
    machine.goes_down()
    assert machine.begin().verdict.cause is Cause.POWER, "it was there before"
    (machine.places.panics / "1700009999").mkdir()
    machine.goes_down()
    assert machine.begin().verdict.cause is Cause.CRASH


def test_power_cuts_cost_nothing_and_resets_end_in_safe_mode(machine: Machine) -> None:
    for _ in range(20):
        machine.begin()
        machine.live(30)
        machine.goes_down()
    assert machine.begin().resets_left == 3
    for left in (2, 1, 0):
        assert machine.starts
        assert not machine.starts.why_no_reset()
        machine.live(30)
        machine.goes_down(32)
        assert machine.begin().resets_left == left
    assert "safe mode: the machine began anew 3 times" in machine.starts.why_no_reset()
    assert machine.held() == {"safe_mode"}
    with pytest.raises(NotNow, match="safe mode: the machine began anew 3 times"):
        machine.hold.check()


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S])
def test_no_wall_clock_refills_or_spends_the_budget(machine: Machine, jump_s: float) -> None:
    machine.begin()
    for left in (2, 1):
        machine.live(30)
        machine.goes_down(32)
        machine.clock.wall_s += jump_s
        assert machine.begin().resets_left == left
    machine.clock.wall_s += jump_s
    machine.goes_down()
    assert machine.begin().resets_left == 1
    machine.live(DAY_S / 2)
    machine.goes_down()
    machine.begin()
    machine.live(DAY_S / 2)
    assert machine.begin().resets_left == 3, "a day of running, over boots"


def test_time_without_power_refills_nothing_and_time_without_agent_does(machine: Machine) -> None:
    machine.begin()
    machine.goes_down(32)
    assert machine.begin().resets_left == 2
    for _ in range(10):
        machine.goes_down()  # for however long
        assert machine.begin().resets_left == 2
    machine.clock.mono_s += DAY_S  # nobody had it started
    assert machine.begin().resets_left == 3


def crash(machine: Machine, times: int, every_s: float = 20.0) -> Starts:
    for _ in range(times):
        machine.live(every_s)
        machine.begin()
    assert machine.starts
    return machine.starts


async def test_a_loop_of_crashes_ends_in_safe_mode_until_somebody_resumes(machine: Machine) -> None:
    machine.begin()
    assert not crash(machine, 4).safe
    assert crash(machine, 1).safe.startswith("the agent began anew 5 times")
    assert machine.hold.holds
    await machine.begin().resume()
    assert machine.held() == set()
    assert not machine.hold.holds
    assert machine.starts
    assert not machine.starts.why_no_reset()
    assert not machine.begin().safe, "it stays so"
    assert [one.remedy for one in machine.events[-2:]] == ["resume", "start"]


async def test_it_leaves_safe_mode_by_itself_and_stays_longer_the_next_time(
    machine: Machine,
) -> None:
    machine.begin()
    found = crash(machine, 5)
    machine.live(3599)
    await found.look()
    assert found.safe
    assert found.shown().safe_mode
    machine.live(1)
    await found.look()
    assert not found.safe
    assert not machine.hold.holds
    found = crash(machine, 5)
    shown = found.shown().safe_mode
    assert shown
    assert shown.leaves_in_s == 7200


async def test_a_start_waits_where_neither_safe_mode_nor_resets_have_helped(
    machine: Machine,
) -> None:
    machine.begin()
    assert crash(machine, 9).pause_s == 0, "systemd may reboot"
    for _ in range(3):
        machine.goes_down()
        assert machine.begin().verdict.cause is Cause.CRASH, "it was systemd"
        crash(machine, 9)
    assert machine.starts
    assert machine.starts.pause_s == PAUSE_S
    await machine.starts.ends("told")
    assert machine.begin().pause_s == 0, "somebody has it begin"
    assert 9 * PAUSE_S > 600, "ten starts take longer than the unit's StartLimitIntervalSec"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[]", b'{"run": 1}', bytes(2 << 20), b"[" * 100_000),
        b'{"run": {"boot": "b", "began_s": -1, "alive_s": 1e300}, "ran_s": 0, "account": {}}',
    ],
)
def test_a_file_that_is_none_is_begun_anew(machine: Machine, content: bytes) -> None:
    machine.places.book.write_bytes(content)
    found = machine.begin()
    assert found.verdict.cause is Cause.UNKNOWN
    assert found.resets_left == 3
    assert machine.begin().verdict.cause is Cause.CRASH, "it is whole again"


def test_what_was_spent_at_a_time_to_come_counts_for_a_day(machine: Machine) -> None:
    spent = [{"kind": "reset", "at_s": 9e11}] * 3
    run = {"boot": "boot-1", "began_s": 1.0, "alive_s": 50.0}
    book = {"run": run, "ran_s": 50.0, "account": {"spent": spent}}
    machine.places.book.write_bytes(msgspec.json.encode(book))
    assert machine.begin().resets_left == 0
    machine.live(DAY_S)
    assert machine.begin().resets_left == 3


def test_a_torn_snapshot_costs_the_seconds_it_told_of(machine: Machine) -> None:
    machine.begin()
    machine.live(100)
    machine.places.snapshot.write_bytes(machine.places.snapshot.read_bytes()[:7])
    machine.goes_down()
    assert machine.begin().verdict.cause is Cause.POWER


def replaced_by_folder(path: Path) -> None:
    path.mkdir(parents=True)


def in_no_folder(path: Path) -> None:
    path.parent.write_bytes(b"")


@pytest.mark.parametrize("spoil", [replaced_by_folder, in_no_folder])
async def test_where_nothing_can_be_written_it_begins_and_nobody_resets(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    machine = Machine(tmp_path)
    machine.places = machine.places._replace(book=tmp_path / "below" / "starts.json")
    spoil(machine.places.book)
    for _ in range(10):
        found = machine.begin()
        assert not found.safe
        assert "starts.json cannot be written" in found.why_no_reset()
        assert machine.held() == {"starts_unwritten"}
    place = machine.places.book if machine.places.book.is_dir() else machine.places.book.parent
    place.rmdir() if place.is_dir() else place.unlink()
    await found.look()
    assert machine.held() == set()
    assert not found.why_no_reset()


UNCOUNTED = ROOT / "provisioning" / "uncounted.sh"


@pytest.fixture
def count(machine: Machine) -> Callable[[], bool]:
    """The unit's count of one more start; whether it would wait: its sleep is told, not slept."""
    told, sleep = machine.folder / "told", machine.folder / "bin" / "sleep"
    machine.places = machine.places._replace(uncounted=machine.folder / "uncounted")
    sleep.parent.mkdir()
    sleep.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    sleep.chmod(0o755)
    path = {"PATH": f"{sleep.parent}:{os.environ['PATH']}"}

    def run() -> bool:
        told.unlink(missing_ok=True)
        words = ("sh", str(UNCOUNTED), str(machine.places.uncounted), "3", "75")
        subprocess.run(words, env=path, check=True)
        return told.exists() and told.read_text() == "75\n"

    return run


def test_the_unit_waits_behind_too_many_starts_that_no_book_has(
    machine: Machine, count: Callable[[], bool]
) -> None:
    assert [count() for _ in range(6)] == [False] * 3 + [True] * 3
    machine.begin()
    assert [count() for _ in range(4)] == [False] * 3 + [True]
    machine.begin()
    machine.places.book.unlink()
    machine.places.book.mkdir()
    for waits in (False, False, False, True):
        assert count() is waits
        machine.begin()
        assert machine.held() == {"starts_unwritten"}


@pytest.mark.parametrize("content", ["", "x\n", "-1\n", "08\n", "99999999999999999999\n"])
def test_a_count_that_is_none_begins_anew(
    machine: Machine, count: Callable[[], bool], content: str
) -> None:
    assert machine.places.uncounted
    machine.places.uncounted.write_text(content)
    assert not count()
    assert machine.places.uncounted.read_text().splitlines()[0] == "1"


def test_the_unit_counts_on_a_full_disk_and_waits_where_it_cannot(
    machine: Machine, count: Callable[[], bool]
) -> None:
    with small("tmpfs", machine.folder) as place:
        machine.places = machine.places._replace(uncounted=place / "uncounted")
        assert not count()
        fill(place / "ballast")
        assert not count()
        assert (place / "uncounted").read_text() == "2\n"
        machine.begin()
        assert (place / "uncounted").read_text() == "0\n"
        assert [count() for _ in range(4)] == [False] * 3 + [True]
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert count()
        machine.places = machine.places._replace(uncounted=place / "none")
        assert count()


async def test_an_end_that_no_book_has_waits(machine: Machine) -> None:
    assert machine.begin().uncounted_pause_s == 0
    machine.places.book.unlink()
    machine.places.book.mkdir()
    found = machine.begin()
    assert found.uncounted_pause_s == PAUSE_S
    machine.places.book.rmdir()
    await found.look()
    assert found.uncounted_pause_s == 0


def test_a_second_agent_counts_nothing_and_writes_nothing(machine: Machine) -> None:
    machine.begin()
    first, before = machine.starts, machine.places.book.read_bytes()
    machine.starts = None
    events = len(machine.events)
    for _ in range(6):
        machine.begin()
        machine.starts = None
    assert machine.places.book.read_bytes() == before
    assert len(machine.events) == events
    machine.starts = first
    assert not machine.begin().safe


async def test_a_disk_that_hangs_holds_up_nobody(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine.begin()
    monkeypatch.setattr("agent.health.starts.starts.KEPT_S", 0.01)
    with found._writing:  # as a thread that is in fsync
        await found.ends("told")
        assert machine.held() == {"starts_unwritten"}
        await found.look()  # does not try: a thread waits already
        assert "cannot be written" in found.why_no_reset()

    async def kept() -> bool:
        await found.look()
        return not machine.held()

    async with asyncio.timeout(30):
        while not await kept():
            await asyncio.sleep(0.01)


texts = st.text(max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
anything = st.recursive(leaves, lambda one: st.lists(one) | st.dictionaries(texts, one))


@settings(max_examples=40)
@given(st.data())
def test_no_content_of_the_files_keeps_an_agent_from_beginning(data: Any) -> None:
    """Nor from a verdict: whatever stands in the place of one of its values."""
    run = {"boot": "b", "began_s": 1.0, "alive_s": 2.0, "ended": "told"}
    account = {"spent": [{"kind": "reset", "at_s": 1.0}], "entered": 1}
    whole: dict[str, Any] = {"run": run, "ran_s": 5.0, "account": account, "starts": {"power": 1}}
    part = data.draw(st.sampled_from([whole, run, account, account["spent"][0]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(anything)
    content = msgspec.json.encode(whole) if data.draw(st.booleans()) else data.draw(st.binary())
    with_folder(content, data.draw(st.sampled_from([content, b'{"alive": {"boot": "b"}}'])))


def with_folder(content: bytes, snapshot: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        machine.places.book.write_bytes(content)
        machine.places.snapshot.write_bytes(snapshot)
        found = machine.begin()
        assert found.shown().resets_left >= 0
        assert book.read(machine.places.book, machine.places.snapshot)


def test_other_limits_hold_at_once(machine: Machine) -> None:
    starts = machine.begin()
    assert starts.resets_left == LIMITS.resets_max
    starts.change(msgspec.structs.replace(LIMITS, resets_max=9))
    assert starts.resets_left == starts.shown().resets_per_day_max == 9
