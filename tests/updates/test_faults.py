"""Each state of an order made to fail: what it says is so, what served serves, and it can be done
again."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ModelError, StoreFull
from agent.updates.archive import Wanted
from agent.updates.repository import Repository
from tests.inference.domains.rig import put
from tests.store.faults.disk import small
from tests.updates.packs import pack
from tests.updates.site import Journal, begun, drop, first

# What fails, and what the order says then; '': it does not mind.
POINTS = {
    "note fetching": "no room in the journal",
    "note unpacking": "no room in the journal",
    "note placing": "no room in the journal",
    "rename in": "cannot be put in its place",
    "note placed": "no room in the journal",
    "note activating": "no room in the journal",
    "replace trials.json": "its probation cannot be noted",
    "replace models.json": "it is done, but cannot be noted",
    "the second replace trials.json": "",
    "the third replace trials.json": "",
}


class Broken:
    """A disk on which one thing fails, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.point, self.left = "", 0
        rename, replace = Path.rename, Path.replace

        def renamed(path: Path, target: Any) -> Path:
            self.reach(f"rename {path.parent.parent.name}")
            return rename(path, target)

        def replaced(path: Path, target: Any) -> Path:
            self.reach(f"replace {Path(target).name}")
            return replace(path, target)

        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Path, "replace", replaced)

    def at(self, point: str) -> None:
        words = point.removeprefix("the ").split(" ", 1)
        number = {"second": 2, "third": 3}.get(words[0], 1)
        self.point, self.left = (words[1] if number > 1 else point), number

    def reach(self, what: str) -> None:
        if what == self.point and self.left:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def noted(self, what: str) -> None:
        try:
            self.reach(f"note {what}")
        except OSError as error:
            raise StoreFull("no room in the journal", "make some") from error


async def test_whatever_fails_is_said_and_a_version_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first(tmp_path)
    broken, serves = Broken(monkeypatch), 1
    async with begun(tmp_path, versions_max=100) as site:
        await site.rig.domains.load("m", 1)
        for number, (point, said) in enumerate(POINTS.items(), 2):
            order = drop(tmp_path, put(tmp_path / "made", number), f"{number}.tar")
            journal = Journal(tmp_path / f"{number}.log", f"c-{number}")
            journal.on_write = broken.noted
            broken.at(point)
            done = await site.order(journal, "model.install", **order, activate=True)
            assert broken.left == 0, (point, "it was reached")
            assert done["state"] == ("failed" if said else "succeeded"), (point, done)
            assert said in done.get("message", ""), (point, done)
            serves = serves if said else number
            assert await site.rig.version() == serves, point
            chosen = site.rig.domains.chosen("m")
            assert chosen
            assert chosen.version == serves, (point, "after a restart, too")
            assert site.probation.watched("m") is None, point
            assert not (site.root / ".staging").exists(), point
            assert site.held == {}, point
        again = await site.ordered("model.install", **order, activate=True)
        assert again["state"] == "succeeded"


def test_a_disk_without_room_leaves_no_version_and_can_be_freed(tmp_path: Path) -> None:
    folder = put(tmp_path / "made", 2)
    (folder / "weights").write_bytes(os.urandom(8 << 20))
    archive, sha256 = pack(folder, tmp_path / "m.tar")
    with small("tmpfs", tmp_path) as place:
        root = place / "models"
        put(root, 1)
        repository = Repository(root, [], 0)
        ballast = place / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 16))
        for _ in range(2):
            with pytest.raises(ModelError):
                repository.stage(archive, Wanted(sha256), lambda: False)
            assert repository.catalog.names() == ["m"]
            assert repository.catalog.versions("m") == [1]
        ballast.unlink()
        with pytest.raises(ModelError, match="does not name 'weights'"):
            repository.stage(archive, Wanted(sha256), lambda: False)
        (folder / "weights").unlink()
        model = repository.stage(*(pack(folder, archive)[0], Wanted(again(archive))), lambda: False)
        assert not repository.there(model)
        repository.put(model)
        repository.clear()
        assert repository.catalog.verified("m").manifest.version == 2
        assert sorted(one.name for one in root.iterdir()) == ["m"]


def again(path: Path) -> str:
    return pack(path.parent / "made/m/2", path)[1]
