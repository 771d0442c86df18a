"""Control groups: the kernel's files for them, where they are mounted, and whose a group is.

Format: a group of ours is called `holdfast-PID-STARTED-N-DOMAIN` by the agent that made it (its
        process id, and when it started in ticks since the boot, since ids are used again), a
        number, and the domain. In it lies one group per child, numbered.
"""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from msgspec import Struct

_NAME = re.compile(r"holdfast-(\d+)-(\d+)-\d+-.+")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # a blank in a mount's path, as mountinfo writes it
_UNSEEN = 0  # a process of another namespace, as are the ids in the group's name then
_STARTED = 19  # of /proc/PID/stat, counted behind the name in brackets


class Tree:
    """The folders and files of control groups; tests have one of their own."""

    def read(self, path: Path) -> str:
        """What a file says. Raises OSError."""
        return path.read_text().strip()

    def write(self, path: Path, value: str) -> None:
        """Set it; a file that is not there is never made. Raises OSError."""
        number = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(number, f"{value}\n".encode())  # the kernel passes over a write of nothing
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(number)

    def make(self, path: Path) -> None:
        """A group; the kernel puts its files there. Raises OSError."""
        path.mkdir()

    def remove(self, path: Path) -> None:
        """A group without processes or groups in it. Raises OSError."""
        path.rmdir()

    def below(self, path: Path) -> list[Path]:
        """The groups right in this one. Raises OSError."""
        return [one for one in path.iterdir() if one.is_dir()]

    def writable(self, path: Path) -> bool:
        """Whether groups may be made in this one."""
        return os.access(path, os.W_OK | os.X_OK, effective_ids=True)

    def kill(self, pid: int) -> None:
        """End a process that a dead agent left."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


class Mount(Struct, frozen=True):
    """A hierarchy of groups: `origin` of it is seen at `point`. v2 has no controllers here."""

    point: Path
    origin: PurePosixPath
    v2: bool
    controllers: frozenset[str]


class Place(Struct, frozen=True):
    """Where this process is in a hierarchy."""

    mount: Mount
    folder: Path


def places(root: Path) -> list[Place]:
    """This process in each hierarchy that is mounted; `root` is where proc is, for tests."""
    rows = lines(root / "proc/self/cgroup")
    own = {names: path for _, names, path in (row.split(":", 2) for row in rows)}
    found = []
    for mount in _mounts(root):
        named = "" if mount.v2 else _row(own, mount.controllers)
        with suppress(KeyError, ValueError):  # not in it, or in a part that is not mounted
            inside = PurePosixPath(own[named]).relative_to(mount.origin)
            found.append(Place(mount, mount.point / inside))
    return found


def lines(path: Path) -> list[str]:
    """Of a file in proc; none where this kernel was built without it."""
    return path.read_text().splitlines() if path.exists() else []


def _row(own: dict[str, str], controllers: frozenset[str]) -> str:
    """As /proc/self/cgroup lists them; only those that all stand in it are of that hierarchy."""
    return next((n for n in own if n and set(n.split(",")) <= controllers), "none")


def _mounts(root: Path) -> list[Mount]:
    found = []
    for row in lines(root / "proc/self/mountinfo"):
        left, _, right = row.partition(" - ")
        origin, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind in ("cgroup", "cgroup2"):
            path = root / _plain(point).lstrip("/")
            names = frozenset(options.split(",")) - {"rw", "ro"}
            v2 = kind == "cgroup2"
            mount = Mount(path, PurePosixPath(_plain(origin)), v2, frozenset() if v2 else names)
            found.append(mount)
    return found


def _plain(escaped: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), escaped)


def started(pid: int) -> int | None:
    """When a process started, in ticks since the boot: with its id, its identity.

    None: it is gone, or that cannot be told.
    """
    with suppress(OSError):
        return _ticks(pid)
    return None


def _ticks(pid: int) -> int:
    """Raises OSError."""
    row = Path(f"/proc/{pid}/stat").read_text()
    return int(row.rpartition(")")[2].split()[_STARTED])


def name(number: int, domain: str) -> str:
    """A new group of this process's; two of one number are the same."""
    pid = os.getpid()
    return f"holdfast-{pid}-{started(pid)}-{number}-{quote(domain, safe='')}"


def _left(group: Path) -> bool:
    """Whether its agent is dead. Who has no descriptor left to look with takes nobody for dead."""
    found = _NAME.fullmatch(group.name)
    try:
        return found is not None and _ticks(int(found[1])) != int(found[2])
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False


def sweep(tree: Tree, base: Path) -> None:
    """Remove what agents that are dead now left here, with the processes that are still in it.

    What does not go yet, since a process takes its time to die, goes at the next sweep.
    """
    for group in filter(_left, tree.below(base)):
        with suppress(OSError):  # another agent sweeps too
            own = [tree.read(one / "cgroup.procs") for one in (*tree.below(group), group)]
            pids = {int(pid) for row in own for pid in row.split()}
            if _UNSEEN in pids:
                continue
            for pid in pids:
                tree.kill(pid)
        discard(tree, {group})


def discard(tree: Tree, groups: set[Path]) -> bool:
    """Remove groups and those in them; whether all are gone. One that is in use stays."""
    return all([_discard(tree, group) for group in groups])  # noqa: C419 (all are tried)


def _discard(tree: Tree, group: Path) -> bool:
    try:
        for one in (*tree.below(group), group):
            with suppress(FileNotFoundError):  # another agent sweeps too
                tree.remove(one)
    except FileNotFoundError:
        return True
    except OSError:  # EBUSY
        return False
    return True
