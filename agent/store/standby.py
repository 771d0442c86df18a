"""Where records are kept while the store's own disk does not serve, and how they come home.

A store on a disk that is missing, failed its check, or takes no writes, must not be a mute device;
and what it takes in meanwhile must not lie below the mount point, where the disk hides it when it
is back.

Limits  : BYTES_MAX, for it lies on the system's disk, and a start has to copy it.
Format  : `<mount point>.standby/` or `<state folder>/standby/`, a store as any other. It begins an
          epoch of its own. HOMING beside it: it is on its way home, and takes no more; what comes
          meanwhile is kept in the folder `again` below it, and so on.
Recovery: at the next start with the disk, a copy is put aside as a damaged file is (quarantine.py)
          and saved into the store under its own epoch; then the folder goes. A crash in between: a
          copy that is not whole is made anew, one that is whole is not made twice.
"""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from agent.store import head, quarantine
from agent.store.reserve import RESERVE_BYTES

BYTES_MAX = 256 * 1024**2
HOMING = "homing"
CAUSE = "kept on another disk while its own did not serve"
# What a disk, its rights or its mount is to blame for, and not the configuration.
OF_THE_DISK = {
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM),
    # The last two: ext4 and XFS of what they find damaged, EBADMSG by its checksum.
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.EUCLEAN, errno.EBADMSG),
}


def places(store: Path, point: Path, state: Path | None, *, beside: bool) -> list[Path]:
    """Where a standby store of `store` may lie, whose disk is mounted at `point`; the best first.

    `beside` the mount point, and in the folder `state` where that is not on the same disk.
    """
    found = [point.with_name(f"{point.name}.standby") / store.name] if beside else []
    if state and point != state and point not in state.parents:
        found.append(state / "standby" / store.name)
    return found


def open_place(place: Path) -> Path:
    """Where records may be kept: there, or below it where what lies there is on its way home."""
    while (place.parent / HOMING).exists():
        place = place.parent / "again" / place.name
    return place


def refusal(store: Path) -> OSError | None:
    """Why no store can be opened there; None: one can. Tried, beside the file.

    One that is there already is opened on a full disk too (file.py); a new one needs room.
    """
    trial = store.with_name(f"{store.name}.probe")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(trial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if not _begun(store):
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
        finally:
            os.close(fd)
            trial.unlink()
    except OSError as error:
        return error
    return None


def _begun(store: Path) -> bool:
    """Whether there is a file, with something in it. Raises OSError where it cannot be used."""
    with suppress(FileNotFoundError):
        fd = os.open(store, os.O_RDWR | os.O_CLOEXEC)
        try:
            return bool(os.pread(fd, head.PAGE_BYTES, 0))
        finally:
            os.close(fd)
    return False


def bring_home(store: Path, standby: Path, wall_s: float) -> None:
    """Have all that was kept meanwhile saved into the store; nobody has either open.

    Raises OSError; then it is as it was, and can be tried again.
    """
    again = standby.parent / "again" / standby.name
    if again.parent.exists():
        bring_home(store, again, wall_s)
    (standby.parent / HOMING).touch()
    quarantine.sync(standby.parent)
    wrecks = [folder / standby.name for folder in quarantine.kept(standby)]
    for one in (*wrecks, standby):
        if one.exists():
            quarantine.adopt(store, one, CAUSE, wall_s)
    _remove(standby.parent)


def _remove(folder: Path) -> None:
    """All that is in it, HOMING last; and the folder itself, where that is ours to remove."""
    for one in folder.iterdir():
        if one.is_dir():
            shutil.rmtree(one)
        elif one.name != HOMING:
            one.unlink()
    quarantine.sync(folder)
    (folder / HOMING).unlink()
    with suppress(OSError):
        folder.rmdir()
