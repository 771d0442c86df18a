"""A real systemd in namespaces of its own: PID 1, its units, and groups below this process's own.

It has no network but its own loopback, and ends with the test. It sees this machine, and can write
to the folder of the test alone. It knows the units of the test and no others: those that boot a
machine would empty its /tmp. Needs root; seconds, not the minutes of a VM.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from agent.host.groups import places
from tests.outside import DEADLINE_S, program, until

SYSTEMD = Path("/lib/systemd/systemd")
V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")
GROUPS = Path("/sys/fs/cgroup")
TARGET = "holdfast-test.target"
UNSHARE = ("unshare", "--kill-child=KILL", "-m", "-p", "-u", "-i", "-n", "-C", "-f")
# What a service needs by default, and what of it a test has: nothing.
STUBS = ("sysinit.target", "basic.target", "local-fs.target", "shutdown.target")

# Runs as PID 1 of the new namespaces. What it mounts nobody outside sees.
_INNER = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/lock
ip link set lo up
umount -l {groups}
mount -t tmpfs -o mode=755 tmpfs {groups}
for one in {v1}; do mkdir {groups}/$one; mount -t cgroup -o $one cgroup {groups}/$one; done
mkdir {groups}/systemd {groups}/unified
mount -t cgroup -o none,name=systemd cgroup {groups}/systemd
mount -t cgroup2 cgroup2 {groups}/unified
mount --bind {folder} {folder}
mount -o remount,bind,ro /
if touch /tmp/holdfast-native; then echo "the machine could be written to"; exit 1; fi
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=holdfast-test \\
    SYSTEMD_UNIT_PATH={units} {systemd} \\
    --system --unit={target} --log-target=console --log-level=info --show-status=no
"""


class Native:
    """`unit` files go into `units`; then `start`."""

    def __init__(self, folder: Path) -> None:
        needs_native()
        self.units = folder / "units"
        self.units.mkdir()
        self.log = folder / "systemd.log"
        self._inner = folder / "inner.sh"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *services: str) -> None:
        """Boot, and have these services run."""
        wants = "\n".join(f"Wants={one}" for one in services)
        (self.units / TARGET).write_text(f"[Unit]\nDescription=All of the test\n{wants}\n")
        found = {"groups": GROUPS, "v1": " ".join(V1), "units": self.units}
        found["folder"] = self.units.parent
        for stub in STUBS:
            (self.units / stub).write_text("[Unit]\nDefaultDependencies=no\n")
        self._inner.write_text(_INNER.format(**found, systemd=SYSTEMD, target=TARGET))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*UNSHARE, "bash", str(self._inner)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._enter_groups,
            )

    def stop(self) -> None:
        """End all of it."""
        if self._process:
            self._process.kill()
            self._process.wait()
        for place in places(Path("/")):
            group = place.folder / f"native-{os.getpid()}"
            until(lambda: _removed(group), f"{group} is empty")  # noqa: B023 (asked at once)

    def pid(self, words: str) -> int | None:
        """The process id, in this namespace, of who has these words in its command line."""
        assert self._process
        for one in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if words in " ".join(one.cmdline()):
                    return one.pid
        return None

    @property
    def inside(self) -> int | None:
        """The process id of its PID 1, out here; None while there is none."""
        assert self._process
        found = psutil.Process(self._process.pid).children()
        return found[0].pid if found else None

    def shown(self, service: str, *names: str) -> dict[str, str]:
        """What `systemctl show` says of a service; nothing while systemd does not answer."""
        inside = self.inside
        if inside is None:
            return {}
        enter = ["nsenter", f"--target={inside}", "--mount", "--pid"]
        asked = ["systemctl", "show", service, *(f"--property={name}" for name in names)]
        done = subprocess.run([*enter, *asked], capture_output=True, text=True, timeout=DEADLINE_S)
        return dict(row.split("=", 1) for row in done.stdout.splitlines())

    def _enter_groups(self) -> None:
        """In the child: groups that become the root of the new namespace's hierarchies."""
        for place in places(Path("/")):
            group = place.folder / f"native-{os.getppid()}"
            group.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (group / name).exists():
                    (group / name).write_text((place.folder / name).read_text())
            (group / "cgroup.procs").write_text(str(os.getpid()))


def needs_native() -> None:
    """Skip where there is no root, no systemd or no cgroup v1 to put it in."""
    program("unshare", "util-linux")
    if os.geteuid() != 0:
        pytest.skip("a systemd in namespaces needs root")
    if not SYSTEMD.exists() or shutil.which("ip") is None:
        pytest.skip("systemd and iproute2 are not installed")
    if not all((GROUPS / one).is_dir() for one in (*V1, "systemd", "unified")):
        pytest.skip("the hierarchies of cgroup v1 are not mounted here")
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("namespaces of one's own are not allowed here")


def _removed(group: Path) -> bool:
    """Try; those who were in it may still be dying."""
    with suppress(OSError):
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
    return not group.exists()


@contextmanager
def booted(native: Native, *services: str) -> Iterator[Native]:
    """Whatever happens, none of it is left."""
    try:
        native.start(*services)
        yield native
    finally:
        native.stop()
