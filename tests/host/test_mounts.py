"""Which folder is to be a disk of its own: as a real fstab says, and as the kernel has it."""

from pathlib import Path

import pytest

from agent.host import mounts
from tests.store.faults.disk import small

FSTAB = """
# <file system> <mount point> <type> <options> <dump> <pass>
UUID=1 / ext4 errors=remount-ro 0 1
UUID=2 /var ext4 defaults 0 2
LABEL=data /var/lib/holdfast/data ext4 defaults,nofail 0 2
LABEL=more /srv/my\\040disk ext4 defaults
/srv/other /var/lib/holdfast/data/bound none bind
LABEL=usb /media/usb vfat noauto,user 0 0
UUID=3 none swap sw 0 0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "fstab").write_text(FSTAB)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/var/lib/holdfast/data/holdfast.db", "/var/lib/holdfast/data"),
        ("/var/lib/holdfast/data/bound/holdfast.db", "/var/lib/holdfast/data"),
        ("/var/lib/holdfast/database/holdfast.db", "/var"),
        ("/srv/my disk/holdfast.db", "/srv/my disk"),
        ("/media/usb/holdfast.db", None),
        ("/home/holdfast.db", None),
    ],
)
def test_the_nearest_mount_point_counts(root: Path, path: str, point: str | None) -> None:
    assert mounts.point(Path(path), root) == (Path(point) if point else None)


def test_without_an_fstab_there_is_none(tmp_path: Path) -> None:
    assert mounts.point(Path("/var/lib/holdfast.db"), tmp_path) is None


def test_what_is_mounted_has_a_device_of_its_own(tmp_path: Path) -> None:
    assert mounts.is_mounted(Path("/proc"))
    assert not mounts.is_mounted(tmp_path)
    assert not mounts.is_mounted(tmp_path / "absent")


def test_what_is_mounted_is_found_without_an_fstab(tmp_path: Path) -> None:
    before = mounts.holding(tmp_path / "small" / "s.db")
    with small("tmpfs", tmp_path) as place:
        assert mounts.holding(place / "not" / "there" / "yet" / "s.db") == place
    assert mounts.holding(tmp_path / "small" / "s.db") == before
    assert mounts.holding(Path("/s.db")) is None
