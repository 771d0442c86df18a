"""A filesystem that forgets what was not fsynced, and fails by rule. The program behind disk.py.

Runs under Debian's Python (python3-fusepy), so it imports nothing of ours:

    python3 passthrough.py LIVE SAFE MOUNT

LIVE is what a process sees through MOUNT; SAFE is what a power cut leaves: writes and truncations
go there at fsync. Making, renaming and removing files is durable at once (so a missing fsync of a
folder is not seen). One JSON request a line on stdin, one JSON answer a line on stdout; the mount
ends with stdin.
"""

import errno
import fnmatch
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fusepy import FUSE, FuseOSError, Operations, fuse_get_context

SECTOR = 512
AFTER_DEATH = {"init", "destroy", "flush", "release", "releasedir"}
Write = tuple[int, bytes | None]  # offset and data; a truncation is a length and None


class Rule:
    """What befalls some operations on some files: the first `skip` are spared, then `times`."""

    def __init__(
        self,
        match: str,
        on: list[str],
        errno: int = 0,
        delay_s: float = 0,
        skip: int = 0,
        times: int | None = None,
        kill: bool = False,
        lose: bool = False,
    ) -> None:
        self.match, self.on = match, set(on)
        self.errno, self.delay_s, self.kill, self.lose = errno, delay_s, kill, lose
        self.first, self.beyond = skip, None if times is None else skip + times
        self.met = self.hits = 0
        self.over = threading.Event()  # nobody it delays waits any longer

    def strikes(self, operation: str, name: str) -> bool:
        """Whether it befalls this one."""
        if operation not in self.on or not fnmatch.fnmatch(name, self.match):
            return False
        self.met += 1
        if self.met <= self.first or (self.beyond is not None and self.met > self.beyond):
            return False
        self.hits += 1
        return True


class Passthrough(Operations):
    """LIVE as it is, and what SAFE does not know of it yet."""

    def __init__(self, live: Path, safe: Path) -> None:
        self.live, self.safe = live, safe
        self.unsynced: dict[str, list[Write]] = {}
        self.rules: list[Rule] = []
        self.dead = False
        self.guard = threading.RLock()

    def __call__(self, operation: str, path: str, *arguments: Any) -> Any:
        self._befall(operation, path)
        with self.guard:
            if self.dead and operation not in AFTER_DEATH:
                raise FuseOSError(errno.EIO)
            return super().__call__(operation, path, *arguments)

    def _befall(self, operation: str, path: str) -> None:
        with self.guard:
            struck = [r for r in self.rules if r.strikes(operation, path.rsplit("/", 1)[-1])]
            for rule in struck:
                if rule.kill:
                    os.kill(fuse_get_context()[2], signal.SIGKILL)
                if rule.lose:
                    self.unsynced.pop(path, None)
        for rule in struck:
            rule.over.wait(rule.delay_s)
        for rule in struck:
            if rule.errno or rule.kill:
                raise FuseOSError(rule.errno or errno.EIO)

    def at(self, path: str) -> Path:
        """Where a path of the mount lies in LIVE."""
        return self.live / path.lstrip("/")

    def both(self, path: str) -> tuple[Path, Path]:
        """Where a path of the mount lies in LIVE and in SAFE."""
        return self.at(path), self.safe / path.lstrip("/")

    # what a power cut can take back

    def write(self, path: str, data: bytes, offset: int, handle: int) -> int:
        written = os.pwrite(handle, data, offset)
        self.unsynced.setdefault(path, []).append((offset, data[:written]))
        return written

    def truncate(self, path: str, length: int, handle: int | None = None) -> None:
        os.truncate(self.at(path), length)
        self.unsynced.setdefault(path, []).append((length, None))

    def fsync(self, path: str, _data_only: int, _handle: int) -> int:
        self._settle(path, self.unsynced.pop(path, []))
        return 0

    def _settle(self, path: str, writes: list[Write]) -> None:
        if not writes or not self.both(path)[1].exists():
            return
        handle = os.open(self.both(path)[1], os.O_RDWR)
        try:
            for offset, data in writes:
                if data is None:
                    os.ftruncate(handle, offset)
                else:
                    os.pwrite(handle, data, offset)
        finally:
            os.close(handle)

    def cut(self, seed: int, keep: float) -> dict[str, int]:
        """The power fails: of what was not fsynced, SAFE gets each sector by this chance."""
        chance = random.Random(seed)
        with self.guard:
            self.dead = True
            sectors = kept = 0
            for path, writes in sorted(self.unsynced.items()):
                pieces = [piece for write in writes for piece in _sectors(write)]
                left = [piece for piece in pieces if chance.random() < keep]
                self._settle(path, left)
                sectors, kept = sectors + len(pieces), kept + len(left)
        return {"sectors": sectors, "kept": kept}

    # durable at once

    def create(self, path: str, mode: int, _info: Any = None) -> int:
        live, safe = self.both(path)
        safe.touch(mode)
        return os.open(live, os.O_RDWR | os.O_CREAT, mode)

    def unlink(self, path: str) -> None:
        self.unsynced.pop(path, None)
        for one in self.both(path):
            one.unlink(missing_ok=one.is_relative_to(self.safe))

    def rename(self, old: str, new: str) -> None:
        for one, other in zip(self.both(old), self.both(new), strict=True):
            one.replace(other)
        self.unsynced[new] = self.unsynced.pop(old, [])

    def mkdir(self, path: str, mode: int) -> None:
        for one in self.both(path):
            one.mkdir(mode)

    def rmdir(self, path: str) -> None:
        for one in self.both(path):
            one.rmdir()

    # as it is

    def open(self, path: str, flags: int) -> int:
        return os.open(self.at(path), flags & ~os.O_APPEND)

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        return os.pread(handle, size, offset)

    def release(self, path: str, handle: int) -> int:
        os.close(handle)
        return 0

    def getattr(self, path: str, handle: int | None = None) -> dict[str, Any]:
        found = self.at(path).lstat()
        return {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}

    def readdir(self, path: str, handle: int) -> list[str]:
        return [".", "..", *(one.name for one in self.at(path).iterdir())]

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self.at(path))
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def chmod(self, path: str, mode: int) -> None:
        self.at(path).chmod(mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self.at(path), uid, gid)

    def utimens(self, path: str, times: tuple[float, float] | None = None) -> None:
        os.utime(self.at(path), times)

    def answer(self, do: str, **how: Any) -> dict[str, Any]:
        """One request from outside."""
        if do == "cut":
            return self.cut(**how)
        with self.guard:
            hits = sum(rule.hits for rule in self.rules)
            if do == "rule":
                self.rules.append(Rule(**how))
            elif do == "clear":
                for rule in self.rules:
                    rule.over.set()
                self.rules = []
        return {"hits": hits}


def _sectors(write: Write) -> list[Write]:
    """A write in pieces that end where a sector ends."""
    offset, data = write
    if data is None:
        return [write]
    cuts = [*range((offset // SECTOR + 1) * SECTOR, offset + len(data), SECTOR)]
    edges = [offset, *cuts, offset + len(data)]
    return [
        (start, data[start - offset : end - offset]) for start, end in itertools.pairwise(edges)
    ]


def _serve(disk: Passthrough, mount: str) -> None:
    for line in sys.stdin:
        print(json.dumps(disk.answer(**json.loads(line))), flush=True)
    subprocess.run(["fusermount3", "-u", "-z", mount], stderr=subprocess.DEVNULL, check=False)
    os._exit(0)


if __name__ == "__main__":
    disk = Passthrough(Path(sys.argv[1]), Path(sys.argv[2]))
    threading.Thread(target=_serve, args=(disk, sys.argv[3]), daemon=True).start()
    FUSE(disk, sys.argv[3], foreground=True, big_writes=True, hard_remove=True, fsname="faults")
