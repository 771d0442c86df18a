"""Control groups v2 as plain files, with the kernel's rules as far as Holdfast meets them."""

import os
from errno import EBUSY, EINVAL, ENOENT, ESRCH
from pathlib import Path

from agent.host.groups import Tree

_FILES = {
    "cpu": {"cpu.weight": "100", "cpu.idle": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.cpus.effective": "0-3"},
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.oom.group": "0",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
    },
    "pids": {"pids.max": "max"},
}
CONTROLLERS = " ".join(_FILES)


class FakeCgroup2(Tree):
    """A machine whose v2 hierarchy is mounted below `root`; this process is in `own` of it.

    `absent` are files that this kernel does not have yet.
    """

    def __init__(self, root: Path, own: str, controllers: str, absent: frozenset[str]) -> None:
        self.root = root
        self.point = root / "sys/fs/cgroup"
        self.own = self.point / own
        self.alive = {os.getpid()}
        self.killed: list[int] = []
        self._absent = absent
        self.point.mkdir(parents=True)
        self._common(self.point, "")
        (self.point / "cgroup.controllers").write_text(controllers)
        for one in reversed([self.own, *self.own.relative_to(self.point).parents][:-1]):
            folder = self.point / one
            if not folder.exists():
                for controller in controllers.split():  # systemd, as it delegates
                    self.write(folder.parent / "cgroup.subtree_control", f"+{controller}")
                self.make(folder)
        self._move(os.getpid(), self.own)
        self._proc()

    def _proc(self) -> None:
        proc = self.root / "proc"
        (proc / "self").mkdir(parents=True)
        (proc / "self/cgroup").write_text(f"0::/{self.own.relative_to(self.point)}\n")
        row = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
        (proc / "self/mountinfo").write_text(f"23 1 0:5 / /proc rw - proc proc rw\n{row}\n")
        (proc / "swaps").write_text(
            "Filename Type Size Used Priority\n/dev/zram0 partition 9 0 5\n"
        )

    def make(self, path: Path) -> None:
        path.mkdir()
        above = self.read(path.parent / "cgroup.subtree_control")
        self._common(path, above)
        self._fill(path, above)

    def _common(self, path: Path, controllers: str) -> None:
        for name, value in (
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", ""),
            ("cgroup.procs", ""),
        ):
            (path / name).write_text(value)

    def _fill(self, path: Path, controllers: str) -> None:
        for controller in controllers.split():
            for name, value in _FILES[controller].items():
                if name not in self._absent and not (path / name).exists():
                    (path / name).write_text(value)

    def remove(self, path: Path) -> None:
        if self.read(path / "cgroup.procs") or self.below(path):
            raise OSError(EBUSY, "Device or resource busy", str(path))
        for file in path.iterdir():
            file.unlink()
        path.rmdir()

    def write(self, path: Path, value: str) -> None:
        if not path.exists():
            raise FileNotFoundError(ENOENT, "No such file or directory", str(path))
        if path.name == "cgroup.procs":
            self._move(int(value), path.parent)
        elif path.name == "cgroup.subtree_control":
            self._hand_on(path.parent, value)
        else:
            self._check(path, value)
            path.write_text(value)

    def _check(self, path: Path, value: str) -> None:
        wrong = path.name == "cpu.weight" and (
            self._reads(path.parent / "cpu.idle") == "1" or not 1 <= int(value) <= 10_000
        )
        if wrong:
            raise OSError(EINVAL, "Invalid argument", str(path))

    def _reads(self, path: Path) -> str:
        return self.read(path) if path.exists() else ""

    def _hand_on(self, group: Path, value: str) -> None:
        sign, controller = value[0], value[1:]
        assert sign == "+"
        if controller not in self.read(group / "cgroup.controllers").split():
            raise OSError(ENOENT, "No such file or directory", str(group))
        if group != self.point and self.read(group / "cgroup.procs"):
            raise OSError(EBUSY, "Device or resource busy", str(group / "cgroup.subtree_control"))
        control = group / "cgroup.subtree_control"
        control.write_text(" ".join(sorted({*self.read(control).split(), controller})))
        for one in self.below(group):
            (one / "cgroup.controllers").write_text(self.read(control))
            self._fill(one, controller)

    def _move(self, pid: int, group: Path) -> None:
        if pid not in self.alive:
            raise OSError(ESRCH, "No such process")
        if group != self.point and self.read(group / "cgroup.subtree_control"):
            raise OSError(EBUSY, "Device or resource busy", str(group / "cgroup.procs"))
        self.leave(pid)
        procs = group / "cgroup.procs"
        procs.write_text("\n".join([*self.read(procs).split(), str(pid)]))

    def leave(self, pid: int) -> None:
        """It is in no group any more."""
        for procs in self.point.rglob("cgroup.procs"):
            procs.write_text("\n".join(one for one in self.read(procs).split() if one != str(pid)))

    def start(self, pid: int, group: Path | None = None) -> None:
        """A process, in this group or the agent's."""
        self.alive.add(pid)
        self._move(pid, group or self.of(os.getpid()))

    def end(self, pid: int) -> None:
        """It died."""
        self.alive.discard(pid)
        self.leave(pid)

    def kill(self, pid: int) -> None:
        self.killed.append(pid)
        self.end(pid)

    def of(self, pid: int) -> Path:
        """The group it is in."""
        found = self.point.rglob("cgroup.procs")
        return next(one.parent for one in found if str(pid) in self.read(one).split())
