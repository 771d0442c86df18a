"""A small real filesystem, filled and freed under load: accepted is accepted, and nothing ends.

HOLDFAST_LONG=1 fills it 20 times.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import Store as Settings
from agent.errors import StoreError, StoreFull
from agent.records import RecordType
from agent.store.intake import New
from agent.store.store import Store
from tests.outside import DEADLINE_S
from tests.store.faults import corrupt
from tests.store.faults.child import LONG, Producer
from tests.store.faults.disk import Disk, needs_fuse, small
from tests.store.faults.judge import Promises

FILLS = 20 if LONG else 3


def fill(ballast: Path) -> None:
    """Take every byte that is left."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_filled_and_freed_under_load(tmp_path: Path, kind: str) -> None:
    offline = tmp_path / "offline"
    with small(kind, tmp_path) as place:
        ballast, var = place / "ballast", place / "var"
        with Producer(var, tmp_path / "said", "1", "--offline", str(offline)) as child:
            for _ in range(FILLS):
                child.heard(100, "appended")
                offline.touch()
                fill(ballast)
                child.heard(50, "failed")
                offline.unlink()
                child.heard(3, "acked")  # on the full disk: that is what the reserve is for
                ballast.unlink()
                child.heard(100, "appended")
            child.kill()
        promises = Promises()
        promises.learn(child.lines())
        errors = {line.split()[2] for line in child.lines() if line.startswith("failed")}
        assert promises.faults(var) == []
        assert "StoreFull" in errors
        assert errors <= {"StoreFull", "StoreError"}


def test_killed_on_a_full_disk(tmp_path: Path) -> None:
    """And opened again when there is room."""
    with small("tmpfs", tmp_path) as place:
        offline = tmp_path / "offline"
        offline.touch()
        with Producer(place / "var", tmp_path / "said", "1", "--offline", str(offline)) as child:
            child.heard(100, "appended")
            fill(place / "ballast")
            child.heard(10, "failed")
            child.kill()
        promises = Promises()
        promises.learn(child.lines())
        (place / "ballast").unlink()
        assert promises.faults(place / "var") == []


def test_a_disk_that_turns_read_only(tmp_path: Path) -> None:
    """ext4 does so when it finds itself damaged. It is told; what was accepted is there after."""
    with small("ext4", tmp_path) as place:
        with Producer(place / "var", tmp_path / "said", "1") as child:
            child.heard(50, "appended")
            device = subprocess.check_output(["findmnt", "-no", "SOURCE", str(place)], text=True)
            trigger = Path("/sys/fs/ext4") / Path(device.strip()).name / "trigger_fs_error"
            if not os.access(trigger, os.W_OK):  # not to be had in every container
                pytest.skip(f"{trigger} cannot be written")
            trigger.write_text("a test")
            child.heard(50, "failed")
            child.kill()
        said = " ".join(line for line in child.lines() if line.startswith("failed"))
        assert "the disk is read-only" in said
        left = tmp_path / "left"
        shutil.copytree(place / "var", left)
    promises = Promises()
    promises.learn(child.lines())
    assert promises.faults(left) == []


async def test_a_read_only_disk_is_gone_on_from(tmp_path: Path) -> None:
    needs_fuse()
    one = [New(RecordType.SEGMENT, b"{}")]
    with Disk(tmp_path / "disk") as disk:
        async with Store(Settings(path=str(disk.mount / "s.db")), Clock()) as store:
            await store.intake.append("a", one)
            disk.rule("*", ["write", "create", "truncate", "unlink"], errno=errno.EROFS)
            with pytest.raises(StoreError, match="the disk is read-only") as error:
                await store.intake.append("a", one)
            assert "mount it for writing" in error.value.hint
            assert (await store.ledger.balances())["a"].held == 1, "reading goes on"
            disk.clear()
            await store.intake.append("a", one)
            assert await store.ledger.faults() == []


async def test_on_a_full_disk_the_old_gives_way_where_that_is_the_rule(tmp_path: Path) -> None:
    with small("tmpfs", tmp_path) as place:
        settings = Settings(path=str(place / "s.db"), when_full="evict")
        async with Store(settings, Clock()) as store:
            some = [New(RecordType.SEGMENT, b"{}", bytes(50_000))] * 10
            for _ in range(40):
                await store.intake.append("a", some)
            fill(place / "ballast")
            refused = accepted = 0
            async with asyncio.timeout(DEADLINE_S):
                while accepted < 40:
                    try:
                        await store.intake.append("a", some)
                        accepted += 1
                    except StoreFull:
                        refused += 1
                        await asyncio.sleep(0.01)
            balance = (await store.ledger.balances())["a"]
            assert refused > 0, "it was full"
            assert balance.dropped["evicted"] > 0
            assert balance.produced == 400 + 10 * accepted
            assert await store.ledger.faults() == []


class NextBoot(Clock):
    """After the machine has begun anew."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = "another boot"


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
async def test_a_start_on_a_full_disk_without_a_reserve(tmp_path: Path, kind: str) -> None:
    """After a clean end there is no WAL, no index of it, and here no room to make them."""
    one = [New(RecordType.SEGMENT, b"{}", bytes(9000))]
    with small(kind, tmp_path) as place:
        settings = Settings(path=str(place / "s.db"))
        async with Store(settings, Clock()) as store:
            await store.intake.append("a", one)
            epoch = store.epoch
        (place / "s.db.reserve").unlink()  # another program has taken what was given up
        fill(place / "ballast")
        async with Store(settings, NextBoot()) as store:
            assert store.epoch == epoch
            assert (await store.ledger.balances())["a"].held == 1
            with pytest.raises(StoreFull):
                await store.intake.append("a", one)
            (place / "ballast").unlink()
            async with asyncio.timeout(DEADLINE_S):
                while (await store.ledger.balances())["a"].held == 1:
                    with contextlib.suppress(StoreFull):
                        await store.intake.append("a", one)
            assert await store.ledger.faults() == []
            with contextlib.closing(sqlite3.connect(f"file:{place}/s.db?mode=ro", uri=True)) as by:
                boots = [name for (name,) in by.execute("SELECT boot FROM boots")]
            assert "another boot" in boots, "noted once there was room, and others can read it"


async def test_damage_that_is_found_on_a_full_disk(tmp_path: Path) -> None:
    """It serves at once, on what the reserve gives; all is saved when there is room."""
    one = [New(RecordType.SEGMENT, b"{}", bytes(9000))]
    with small("tmpfs", tmp_path) as place:
        settings = Settings(path=str(place / "s.db"))
        async with Store(settings, Clock()) as store:
            for _ in range(100):
                await store.intake.append("a", one)
            epoch = store.epoch
        corrupt.flip(place / "s.db", 0)
        fill(place / "ballast")
        async with Store(settings, Clock()) as store:
            assert store.epoch != epoch
            saving = asyncio.create_task(store.salvage.run())
            assert await store.ledger.faults() == []
            (place / "ballast").unlink()
            async with asyncio.timeout(DEADLINE_S):
                while (await store.salvage.reports())[0].state != "done":
                    await asyncio.sleep(0.05)
            assert (await store.salvage.reports())[0].saved == 100
            assert await store.ledger.faults() == []
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
