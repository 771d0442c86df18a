"""A store whose disk does not serve: records are kept elsewhere, it is said, and they come home."""

import asyncio
import shutil
import subprocess
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
from tests.store.faults.disk import program, small
from tests.store.faults.test_disk_full import fill


class Field:
    """A machine whose fstab has a disk for `data`, which is there or not."""

    def __init__(self, folder: Path) -> None:
        (folder / "etc").mkdir()
        self.fstab = folder / "etc" / "fstab"
        self.fstab.write_text(f"LABEL=data {folder}/data ext4 nofail 0 2\n")
        (folder / "data").mkdir()
        self.settings = config.Store(path=str(folder / "data" / "s.db"))
        self.conditions = Conditions(Clock())
        self.state = folder / "state"  # the unit's
        self.state.mkdir()
        self._folder = folder

    def disk(self, *, mounted: bool, state: Path | None = None) -> StoreDisk:
        return StoreDisk(
            *(self.settings, self.conditions, Clock()),
            *(self._folder, lambda _: mounted, state),
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


async def test_an_absence_that_begins_amid_a_return_loses_nothing(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes once it is copied, and the next start is without the disk again."""
    first = field.disk(mounted=False)
    one = await keep(first.settings, b'"one"')
    with monkeypatch.context() as patch:
        patch.setattr(standby, "_remove", lambda _: None)
        await field.disk(mounted=True).bring_home()
    second = field.disk(mounted=False)
    two = await keep(second.settings, b'"two"', b'"three"')
    assert one != two, "what is on its way home takes no more"
    back = field.disk(mounted=True)
    await back.bring_home()
    async with Store(back.settings, Clock()) as store:
        await saved(store)
        found = await store.ledger.by_epoch()
    assert {key: found[key]["watchdog"].held for key in (one, two)} == {one: 1, two: 2}
    assert not Path(first.settings.path).parent.exists()


async def test_what_cannot_come_home_stays_and_is_said(field: Field) -> None:
    away = field.disk(mounted=False)
    await keep(away.settings, b'"one"')
    quarantine.place(Path(field.settings.path)).write_text("in the way")
    await field.disk(mounted=True).bring_home()
    assert "store_standby_left" in field.names()
    assert Path(away.settings.path).exists()


async def test_where_nothing_can_be_made_beside_the_mount_point_the_state_folder_serves(
    field: Field,
) -> None:
    """As where a disk is mounted at `/data`, and `/` is no place for the agent to write to."""
    with small("tmpfs", Path(field.settings.path).parents[1]) as place:
        field.settings = config.Store(path=str(place / "data" / "s.db"))
        field.fstab.write_text(f"LABEL=data {place}/data ext4 nofail 0 2\n")
        (place / "data").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        away = field.disk(mounted=False, state=field.state)
        assert away.settings.path == str(field.state / "standby" / "s.db")
        (said,) = field.conditions.all()
        assert said.name == "store_disk_missing"
        assert away.settings.path in said.cause
        await keep(away.settings, b'"one"')
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)  # by a disk at data
        back = field.disk(mounted=True, state=field.state)
        await back.bring_home()
        async with Store(back.settings, Clock()) as store:
            assert [one.saved for one in await saved(store)] == [1]
        assert not (field.state / "standby").exists()


def test_a_state_folder_on_the_disk_itself_is_no_other_place(field: Field) -> None:
    below = Path(field.settings.path).parent / "state"
    places = standby.places(Path(field.settings.path), below.parent, below, beside=True)
    assert [one.parent.name for one in places] == ["data.standby"]


@pytest.mark.parametrize("fault", ["read-only", "full"])
async def test_a_disk_that_takes_no_writes_is_stood_in_for(field: Field, fault: str) -> None:
    with small("tmpfs", Path(field.settings.path).parents[1]) as place:
        field.settings = config.Store(path=str(place / "s.db"))
        field.fstab.unlink()  # mounted by other means
        if fault == "full":  # before there is a store: one that is there is opened
            fill(place / "ballast")
        else:
            await keep(field.settings, b'"before"')
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        away = field.disk(mounted=True, state=field.state)
        assert away.settings.path == str(field.state / "standby" / "s.db")
        (said,) = field.conditions.all()
        assert (said.name, said.subject) == ("store_disk_unusable", str(place))
        assert ("Read-only" if fault == "read-only" else "No space") in said.cause
        await keep(away.settings, b'"one"')
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        (place / "ballast").unlink(missing_ok=True)
        back = field.disk(mounted=True, state=field.state)
        assert back.settings == field.settings
        await back.bring_home()
        async with Store(back.settings, Clock()) as store:
            assert [one.saved for one in await saved(store)] == [1]


@pytest.mark.parametrize("how", ["clri s.db", "set_inode_field s.db checksum 1"])
async def test_a_damaged_filesystem_is_stood_in_for(field: Field, how: str) -> None:
    """As a disk leaves it that lost what it had said to be written."""
    folder = Path(field.settings.path).parents[1]
    with small("ext4", folder) as place:
        field.settings = config.Store(path=str(place / "s.db"))
        field.fstab.unlink()
        await keep(field.settings, b'"before"')
        subprocess.run(["umount", str(place)], check=True)
        debugfs = program("debugfs", "e2fsprogs")
        image = folder / "image"
        subprocess.run([debugfs, "-w", "-R", how, image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        away = field.disk(mounted=True, state=field.state)
        assert away.settings.path == str(field.state / "standby" / "s.db")
        assert field.names() == {"store_disk_unusable"}
        await keep(away.settings, b'"one"')


async def test_what_has_no_room_at_home_leaves_the_disk_as_it_was(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the room goes while it is copied."""
    with small("tmpfs", Path(field.settings.path).parents[1]) as place:
        field.settings = config.Store(path=str(place / "s.db"))
        field.fstab.write_text(f"LABEL=data {place} ext4 nofail 0 2\n")
        await keep(field.settings, b'"before"')
        away = field.disk(mounted=False, state=field.state)
        body = b'"%s"' % (b"x" * 600_000)
        await keep(away.settings, *[body] * 30)  # 18 MB: more than half of what is free
        field.conditions.clear("store_disk_missing", str(place))
        for ballast in (0, shutil.disk_usage(place).free - quarantine.MARGIN_BYTES):
            if ballast:
                (place / "ballast").write_bytes(bytes(ballast))
                monkeypatch.setattr(quarantine, "_check_room", lambda *_: None)
            before = shutil.disk_usage(place).free
            await field.disk(mounted=True, state=field.state).bring_home()
            assert field.names() == {"store_standby_left"}
            assert shutil.disk_usage(place).free == before
            field.conditions.clear("store_standby_left", str(Path(away.settings.path).parent))
        assert quarantine.kept(place / "s.db") == []


async def looked(field: Field, state: Path | None = None) -> str:
    """Open the store as an agent does, and look whether it is the same; its epoch."""
    disk = field.disk(mounted=True, state=state or field.state)
    async with Store(disk.settings, Clock()) as store:
        same = disk.same(store)
        assert same
        await same.look()
        return store.epoch


async def test_another_disk_in_its_place_is_said_until_it_is_meant(field: Field) -> None:
    data = Path(field.settings.path).parent
    former = await looked(field)
    assert field.names() == set()
    data.rename(data.with_name("drawer"))
    data.mkdir()  # another one, empty
    now = await looked(field)
    assert now != former
    (said,) = field.conditions.all()
    assert (said.name, said.severity) == ("store_is_another", "critical")
    assert former in said.cause
    field.conditions.clear(said.name, said.subject)
    await looked(field)
    assert field.names() == {"store_is_another"}, "a restart does not end it"
    shutil.rmtree(data)
    data.with_name("drawer").rename(data)
    assert await looked(field) == former
    assert field.names() == set(), "it is back"
    shutil.rmtree(data)
    data.mkdir()
    await looked(field)
    (said,) = field.conditions.all()
    (file,) = (one for one in field.state.iterdir() if str(one) in said.remedy)
    file.unlink()
    await looked(field)
    assert field.names() == set(), "somebody said that this one is meant"
    await looked(field)
    assert field.names() == set()


async def test_a_damaged_file_that_was_put_aside_is_no_other_disk(field: Field) -> None:
    former = await looked(field)
    Path(field.settings.path).write_bytes(b"")
    assert await looked(field) != former
    assert field.names() == set()


async def test_a_store_at_another_path_is_no_other_disk(field: Field) -> None:
    await looked(field)
    field.settings = config.Store(path=str(Path(field.settings.path).with_name("t.db")))
    await looked(field)
    assert field.names() == set()


async def test_a_store_without_a_disk_of_its_own_has_no_standby(field: Field) -> None:
    field.fstab.unlink()
    alone = field.disk(mounted=False, state=field.state)
    assert alone.settings == field.settings
    assert field.names() == set()
    async with Store(alone.settings, Clock()) as store:
        assert alone.same(store) is None
