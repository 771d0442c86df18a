"""A disk that loses what was not fsynced, tears pages, fails calls and is slow.

HOLDFAST_LONG=1 makes 100 power cuts, HOLDFAST_SEED=N those of a failure that was printed.
"""

import asyncio
import errno
import random
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError
from agent.records import RecordType
from agent.store.intake import New
from agent.store.store import Store
from tests.outside import until
from tests.store.faults.child import LONG, SEED, Producer
from tests.store.faults.disk import Disk, needs_fuse
from tests.store.faults.judge import Promises

CUTS = 100 if LONG else 3
CONTROL_CUTS_MAX = 20
LIVES = 10  # on one disk, before the next begins empty


@pytest.fixture(autouse=True)
def _fuse() -> None:
    needs_fuse()


def test_a_power_cut_takes_nothing_that_was_accepted(tmp_path: Path) -> None:
    """All that was not synced is gone, or a random half of its sectors, or few of them."""
    chance = random.Random(SEED)
    for cut in range(CUTS):
        if cut % LIVES == 0:
            promises, content = Promises(), None
        with (
            Disk(tmp_path / str(cut), content) as disk,
            Producer(disk.mount, tmp_path / "said", f"{SEED}.{cut}") as child,
        ):
            child.heard(chance.randint(1, 250))
            content = disk.cut(chance.getrandbits(32), chance.choice([0.0, 0.5, 0.9]))
            child.kill()
        promises.learn(child.lines())
        assert promises.faults(content) == [], f"HOLDFAST_SEED={SEED}, cut {cut}"


def test_without_fsync_the_loss_is_seen(tmp_path: Path) -> None:
    """The negative control: synchronous=NORMAL loses accepted records here."""
    for cut in range(CONTROL_CUTS_MAX):
        options = ("--synchronous", "NORMAL")
        with (
            Disk(tmp_path / str(cut)) as disk,
            Producer(disk.mount, tmp_path / "said", f"{SEED}.{cut}", *options) as child,
        ):
            child.heard(100, "appended")
            left = disk.cut()
            child.kill()
        promises = Promises()
        promises.learn(child.lines())
        if any(fault.startswith("missing:") for fault in promises.faults(left)):
            return
    pytest.fail(f"{CONTROL_CUTS_MAX} power cuts took nothing from synchronous=NORMAL")


FAILURES = {
    "no room for the WAL": ("s.db-wal", "write", errno.ENOSPC, "StoreFull"),
    "no room for the fsync of the WAL": ("s.db-wal", "fsync", errno.ENOSPC, "Store"),
    "the WAL cannot be written": ("s.db-wal", "write", errno.EIO, "StoreError"),
    "the WAL cannot be fsynced": ("s.db-wal", "fsync", errno.EIO, "StoreError"),
    "no room for a checkpoint": ("s.db", "write", errno.ENOSPC, ""),
    "a checkpoint cannot be written": ("s.db", "write", errno.EIO, ""),
    "a checkpoint cannot be fsynced": ("s.db", "fsync", errno.EIO, ""),
    "the file cannot be truncated": ("s.db", "truncate", errno.EIO, ""),
    "nothing can be written": ("s.db*", "write", errno.EIO, "StoreError"),
}
NEEDS_A_HIT = {name for name in FAILURES if "truncated" not in name}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("some", [False, True], ids=["every call", "some calls"])
def test_a_failing_call_is_a_typed_error_and_ends(tmp_path: Path, failure: str, some: bool) -> None:
    """It goes on by itself when the disk does, and a power cut after it finds all that was said.

    What a failed fsync did not write is lost for good, as on a real disk: `lose`.
    """
    name, operation, number, typed = FAILURES[failure]
    chance = random.Random(f"{SEED}:{failure}")
    with Disk(tmp_path / "disk") as disk, Producer(disk.mount, tmp_path / "said", "1") as child:
        child.heard(20, "appended")
        how = {"skip": chance.randint(1, 9), "times": 3} if some else {}
        disk.rule(name, [operation], errno=number, lose=operation == "fsync", **how)
        if failure in NEEDS_A_HIT:
            until(lambda: disk.hits() >= (3 if some else 1) or child.dead(), "the call fails")
        if typed and not some:
            child.heard(20, "failed")
        disk.clear()
        child.heard(50, "appended")
        child.heard(3, "acked")
        left = disk.cut(chance.getrandbits(32), 0.5)
        child.kill()
    _judge(child, left, typed if not some else "")


def test_the_power_fails_while_calls_fail(tmp_path: Path) -> None:
    """Nothing that was accepted before the fault is lost with it."""
    for operation in ("write", "fsync"):
        folder = tmp_path / operation
        with Disk(folder) as disk, Producer(disk.mount, tmp_path / "said", "1") as child:
            child.heard(100, "appended")
            disk.rule("s.db*", [operation], errno=errno.EIO, lose=True)
            child.heard(50, "failed")
            left = disk.cut(SEED, 0.5)
            child.kill()
        _judge(child, left, "StoreError")


def test_a_slow_fsync_delays_and_breaks_nothing(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk, Producer(disk.mount, tmp_path / "said", "1") as child:
        child.heard(20, "appended")
        disk.rule("s.db-wal", ["fsync"], delay_s=2.0, times=1)
        until(lambda: disk.hits() == 1 or child.dead(), "a slow commit")
        child.heard(20, "appended")
        said = child.lines()
        left = disk.cut(SEED, 0.5)
        child.kill()
    assert not [line for line in said if line.startswith("failed")]
    _judge(child, left, "")


@pytest.mark.xfail(
    strict=True,
    reason="a commit whose fsync failed lies whole in the WAL: a crash before the next commit"
    " brings it back, though append answered that nothing of it was kept",
)
def test_what_was_refused_is_not_there_after_a_crash(tmp_path: Path) -> None:
    def opened(folder: Path) -> Store:
        return Store(Settings(path=str(folder / "s.db")), Clock())

    async def refused(disk: Disk) -> Path:
        async with opened(disk.mount) as store:
            await store.intake.append("a", [New(RecordType.SEGMENT, b"1")])
            disk.rule("s.db-wal", ["fsync"], errno=errno.EIO)
            with pytest.raises(StoreError):
                await store.intake.append("a", [New(RecordType.SEGMENT, b"2")])
            return disk.cut(keep=1.0)

    async def held(folder: Path) -> int:
        async with opened(folder) as store:
            return (await store.ledger.balances())["a"].held

    with Disk(tmp_path / "disk") as disk:
        left = asyncio.run(refused(disk))
    assert asyncio.run(held(left)) == 1


def _judge(child: Producer, left: Path, typed: str) -> None:
    """Every promise is kept, and each error had a type that a caller knows."""
    promises = Promises()
    promises.learn(child.lines())
    assert promises.faults(left) == [], f"HOLDFAST_SEED={SEED}"
    errors = {line.split()[2] for line in child.lines() if line.startswith("failed")}
    assert errors <= {"StoreFull", "StoreError"}
    assert not typed or any(error.startswith(typed) for error in errors)
