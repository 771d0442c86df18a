"""Where records are kept while the store's own disk is not there, and how they come home.

A store on a disk that is missing, or failed its check, must not be a mute device; and what it takes
in meanwhile must not lie below the mount point, where the disk hides it when it is back.

Limits  : BYTES_MAX, for it lies on the system's disk, and a start has to copy it.
Format  : `<mount point>.standby/`, a store as any other. It begins an epoch of its own.
Recovery: at the next start with the disk, a copy is put aside as a damaged file is (quarantine.py)
          and saved into the store under its own epoch; then the folder goes. A crash in between: a
          copy that is not whole is made anew, one that is whole is not made twice.
"""

import shutil
from pathlib import Path

from agent.store import quarantine

BYTES_MAX = 256 * 1024**2
CAUSE = "kept on another disk while its own was not there"


def place(store: Path, point: Path) -> Path:
    """Where the standby store of `store` lies, whose disk is mounted at `point`."""
    return point.with_name(f"{point.name}.standby") / store.name


def bring_home(store: Path, standby: Path, wall_s: float) -> None:
    """Have all that was kept meanwhile saved into the store; nobody has either open.

    Raises OSError; then it is as it was, and can be tried again.
    """
    wrecks = [folder / standby.name for folder in quarantine.kept(standby)]
    for one in (*wrecks, standby):
        if one.exists():
            quarantine.adopt(store, one, CAUSE, wall_s)
    shutil.rmtree(standby.parent)
