"""A disk that can be cut off and told to fail: passthrough.py in a process of its own.

with Disk(folder) as disk:
    ...a process writes in disk.mount...
    disk.rule("*-wal", ["fsync"], errno=errno.EIO)
    disk.clear()
    left = disk.cut(seed=1, keep=0.5)    # every later access fails; `left` is what survived
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.outside import DEADLINE_S, program, until

PYTHON = "/usr/bin/python3"  # Debian's: python3-fusepy is installed for this one
SMALL_MB = 48
SERVER = Path(__file__).with_name("passthrough.py")


def absent(what: str, remedy: str) -> None:
    """Skip on a laptop, fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: {remedy}", pytrace=False)
    pytest.skip(f"{what} ({remedy})")


def needs_fuse() -> None:
    """End the test here where there is no FUSE."""
    program("fusermount3", "fuse3")
    if not Path("/dev/fuse").exists():
        absent("/dev/fuse is missing", "run on a kernel, or in a container, with FUSE")
    tried = subprocess.run([PYTHON, "-c", "import fusepy"], capture_output=True, check=False)
    if tried.returncode:
        absent("fusepy is not installed", "apt-get install python3-fusepy")


class Disk:
    """The mounted disk; `mount` is where to write, `safe` what a cut leaves. A context manager."""

    def __init__(self, folder: Path, content: Path | None = None) -> None:
        """`content` is a folder whose files are on it from the start, synced."""
        self.live, self.safe, self.mount = (folder / n for n in ("live", "safe", "mount"))
        self._content = content
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        for place in (self.live, self.safe):
            if self._content:
                shutil.copytree(self._content, place)
            else:
                place.mkdir(parents=True)
        self.mount.mkdir(parents=True)
        process = self._process = subprocess.Popen(
            [PYTHON, str(SERVER), str(self.live), str(self.safe), str(self.mount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: self.mount.is_mount() or process.poll() is not None, "a mount")
            assert self.mount.is_mount(), "the filesystem's process has ended"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # it unmounts and ends
        try:
            self._process.wait(DEADLINE_S)
        finally:
            unmount(self.mount)
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process.stdout.close()

    def rule(self, match: str, on: list[str], **how: Any) -> None:
        """From now on: what befalls these operations on files of this name (passthrough.Rule)."""
        self._ask("rule", match=match, on=on, **how)

    def clear(self) -> int:
        """No rules any more, and nobody waits for one; how often they struck."""
        return int(self._ask("clear")["hits"])

    def hits(self) -> int:
        """How often the rules struck."""
        return int(self._ask("hits")["hits"])

    def cut(self, seed: int = 0, keep: float = 0.0) -> Path:
        """The power fails. Of what was not fsynced, each sector survives by this chance."""
        self._ask("cut", seed=seed, keep=keep)
        return self.safe

    def _ask(self, do: str, **how: Any) -> dict[str, Any]:
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **how}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def small(kind: str, folder: Path) -> Iterator[Path]:
    """A filesystem of SMALL_MB, mounted; tmpfs, or ext4 in a file."""
    place = folder / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MB}m", "tmpfs", str(place)]
    if kind == "ext4":
        mkfs, image = program("mkfs.ext4", "e2fsprogs"), folder / "image"
        with image.open("wb") as file:
            file.truncate(SMALL_MB << 20)
        subprocess.run([mkfs, "-q", "-F", str(image)], check=True)
        command = ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)]
    if os.geteuid() != 0:
        absent("not root", "mounting a small filesystem needs root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        absent(f"no {kind} can be mounted here: {done.stderr.strip()}", "needs CAP_SYS_ADMIN")
    try:
        yield place
    finally:
        unmount(place)


def unmount(place: Path) -> None:
    """Whatever is mounted there is not, even if it is in use."""
    for command in (["fusermount3", "-u", "-z"], ["umount", "-l"]):
        if os.path.ismount(place):
            subprocess.run([*command, str(place)], stderr=subprocess.DEVNULL, check=False)
