"""The image of the appliance: Debian, and the agent as provisioning/install.sh puts it there.

Three layers: `debian` (debian.py); `wheels`, what requirements/device.txt names; and of both
`agent`, whose `root.img` (ext4, no boot loader) a machine boots. A change of the agent makes that
one anew, in half a minute. Needs root, and what NEEDED names.

`python -m tests.appliance.image.build` makes it, and says where it is.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.appliance.image import debian
from tests.appliance.image.layers import ROOT, Input, Layers, run, said

HERE = Path(__file__).parent
CACHE = Path(
    os.environ.get("HOLDFAST_APPLIANCE_CACHE", Path.home() / ".cache" / "holdfast-appliance")
)
NEEDED = {  # program: Debian's package
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
}
PYTHON = "3.11"  # of the suite, which the wheels are for
GLIBC = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_28", "manylinux_2_34")
LOCK = ROOT / "requirements" / "device.txt"
SHIPPED = ("agent", "fleet", "docs", "models", "provisioning", "pyproject.toml", "README.md")
# While it is installed: the checkout, and all wheels.
SOURCE, WHEELS = Path("srv/checkout"), Path("srv/wheels")
ENABLED = ("door.socket", "hand.socket")  # beside the agent's own
# What a device may have, and no test looks at: each costs some of a second under emulation.
MASKED = (
    *("getty.target", "systemd-binfmt.service", "systemd-update-utmp.service"),
    *("systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-sysusers.service"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount"),
    *("modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service"),
    *("modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "e2scrub_all.timer"),
)
SPARE_KIB = 1024 * 1024  # of the root's file system: for a boot, and for another version
BLOCK_BYTES = 4096


class Image(NamedTuple):
    """What a machine boots; `owner` is the agent's user and group in there, as numbers; `wheels`
    is a folder of all that the agent needs."""

    kernel: Path
    initrd: Path
    root: Path
    owner: str
    wheels: Path


def missing() -> str:
    """What this machine lacks for it, as one line that says what to do; empty: nothing."""
    if os.geteuid() != 0:
        return "an image is made by root alone (mmdebstrap, chroot)"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = [package for name, package in NEEDED.items() if not shutil.which(name, path=path)]
    return f"apt-get install --no-install-recommends {' '.join(packages)}" if packages else ""


def build(cache: Path = CACHE, tell: Callable[[str], None] = print) -> Image:
    """The image of this working tree, made where it is not there yet."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        layers = Layers(cache, tell)
        system = layers.made("debian", debian.inputs(), debian.make)
        wheels = layers.made("wheels", [LOCK, repr((PYTHON, GLIBC))], _take_wheels)
        of_agent = [system.name, wheels.name, Path(__file__), *_files()]
        agent = layers.made("agent", of_agent, partial(_make_agent, system, wheels))
    owner = (agent / "owner").read_text()
    return Image(system / "vmlinuz", system / "initrd.gz", agent / "root.img", owner, wheels)


def _files() -> list[Input]:
    """Each file that is put into the image: what git knows, and what it does not know yet."""
    listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    names = said("git", "-C", ROOT, *listed, *SHIPPED, HERE / "root")
    found = (ROOT / name for name in sorted("".join(names).split("\0")))
    return [path for path in found if path.is_file()]


def _take_wheels(new: Path) -> None:
    """What the lock names, for the Python in there."""
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--only-binary=:all:"]
    pip += ["--implementation=cp", f"--python-version={PYTHON}"]
    pip += [f"--platform={one}_x86_64" for one in GLIBC]
    run(*pip, "--require-hashes", f"--requirement={LOCK}", f"--dest={new}")


def _make_agent(system: Path, wheels: Path, new: Path) -> None:
    """`root.img`, and who owns what in there."""
    root = new / "root"
    run("cp", "-a", system / "root", root)
    _install(root, wheels)
    run("cp", "-r", f"{HERE / 'root'}/.", root)
    run("chroot", root, "systemctl", "--quiet", "mask", *MASKED)
    run("chroot", root, "systemctl", "--quiet", "enable", *ENABLED)
    (new / "owner").write_text(_owner(root))
    _make_filesystem(root, new / "root.img")
    shutil.rmtree(root)


def _install(root: Path, wheels: Path) -> None:
    """As whoever installs a device does it, on that device."""
    checkout(root / SOURCE)
    shutil.copytree(wheels, root / WHEELS)
    own_wheel(root / SOURCE, root / WHEELS)
    (root / "dev" / "watchdog").touch()  # the machine has one, where it boots
    script = f"/{SOURCE}/provisioning/install.sh"
    said("chroot", root, script, "--wheels", f"/{WHEELS}", "--enable")
    for one in (SOURCE, WHEELS):
        shutil.rmtree(root / one)


def checkout(place: Path) -> None:
    """What ships of this working tree, as a checkout has it."""
    for path in _files():
        name = Path(path).relative_to(ROOT)
        if name.parts[0] in SHIPPED:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / name)


def own_wheel(source: Path, place: Path) -> None:
    """The agent's own, of a checkout (which is not as it was afterwards), into a folder."""
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation"]
    run(*pip, f"--wheel-dir={place}", source)


def _owner(root: Path) -> str:
    rows = (root / "etc" / "passwd").read_text().splitlines()
    (owner,) = (row.split(":")[2:4] for row in rows if row.startswith("holdfast:"))
    return ":".join(owner)


def _make_filesystem(root: Path, path: Path) -> None:
    used_kib = int(said("du", "-sk", root)[0].split()[0])
    with path.open("wb") as file:
        file.truncate((used_kib * 6 // 5 + SPARE_KIB) * 1024 // BLOCK_BYTES * BLOCK_BYTES)
    run("mkfs.ext4", "-q", "-F", "-L", "root", "-d", root, path)


if __name__ == "__main__":
    if lacks := missing():
        sys.exit(f"missing: {lacks}")
    for one in build():
        print(one)
