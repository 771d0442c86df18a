"""A store whose disk is missing: records are kept elsewhere, it is said, and they come home."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from agent import config
from agent.clock import Clock
from agent.compose.disk import StoreDisk
from agent.health.conditions import Conditions
from agent.records import RecordType
from agent.store import quarantine, standby
from agent.store.intake import New
from agent.store.quarantine import PutAside
from agent.store.store import Store
from tests.outside import DEADLINE_S


class Field:
    """A machine whose fstab has a disk for `data`, which is there or not."""

    def __init__(self, folder: Path) -> None:
        (folder / "etc").mkdir()
        self.fstab = folder / "etc" / "fstab"
        self.fstab.write_text(f"LABEL=data {folder}/data ext4 nofail 0 2\n")
        (folder / "data").mkdir()
        self.settings = config.Store(path=str(folder / "data" / "s.db"))
        self.conditions = Conditions(Clock())
        self._folder = folder

    def disk(self, *, mounted: bool) -> StoreDisk:
        return StoreDisk(
            *(self.settings, self.conditions, Clock()), self._folder, lambda _: mounted
        )

    def names(self) -> set[str]:
        return {one.name for one in self.conditions.all()}


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return Field(tmp_path)


async def keep(settings: config.Store, *bodies: bytes) -> str:
    """Have records kept, each in its commit; the epoch."""
    async with Store(settings, Clock()) as store:
        for body in bodies:
            await store.intake.append("watchdog", [New(RecordType.WATCHDOG, body)])
        return store.epoch


async def saved(store: Store) -> list[PutAside]:
    """What lay aside, once all of it is read."""
    saving = asyncio.create_task(store.salvage.run())
    async with asyncio.timeout(DEADLINE_S):
        while any(one.state != "done" for one in await store.salvage.reports()):
            await asyncio.sleep(0.01)
    saving.cancel()
    with suppress(asyncio.CancelledError):
        await saving
    return await store.salvage.reports()


async def test_what_was_kept_without_the_disk_comes_home_in_its_own_epoch(field: Field) -> None:
    before = await keep(field.settings, b'"before"')
    away = field.disk(mounted=False)
    assert away.settings.path == str(Path(field.settings.path).parents[1] / "data.standby" / "s.db")
    assert away.settings.bytes_max == standby.BYTES_MAX
    assert field.names() == {"store_disk_missing"}
    meanwhile = await keep(away.settings, b'"one"', b'"two"')
    back = field.disk(mounted=True)
    assert back.settings == field.settings
    await back.bring_home()
    async with Store(back.settings, Clock()) as store:
        (report,) = await saved(store)
        assert (report.epoch, report.saved, report.lost) == (meanwhile, 2, 0)
        held = {
            epoch: one["watchdog"].held for epoch, one in (await store.ledger.by_epoch()).items()
        }
        assert held == {before: 1, meanwhile: 2}
        assert await store.ledger.faults() == []
    assert not Path(away.settings.path).parent.exists()


async def test_a_crash_before_the_standby_is_gone_brings_nothing_home_twice(field: Field) -> None:
    away = field.disk(mounted=False)
    await keep(away.settings, b'"one"')
    path = Path(field.settings.path)
    (quarantine.place(path) / "copying").mkdir(parents=True)  # another one, in the middle of it
    quarantine.adopt(path, Path(away.settings.path), standby.CAUSE, 0.0)
    await field.disk(mounted=True).bring_home()
    assert len(quarantine.kept(path)) == 1
    assert not Path(away.settings.path).parent.exists()


async def test_what_cannot_come_home_stays_and_is_said(field: Field) -> None:
    away = field.disk(mounted=False)
    await keep(away.settings, b'"one"')
    quarantine.place(Path(field.settings.path)).write_text("in the way")
    await field.disk(mounted=True).bring_home()
    assert "store_standby_left" in field.names()
    assert Path(away.settings.path).exists()


async def test_a_store_without_a_disk_of_its_own_has_no_standby(field: Field) -> None:
    field.fstab.unlink()
    alone = field.disk(mounted=False)
    assert alone.settings == field.settings
    assert field.names() == set()
