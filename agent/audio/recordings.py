"""Sources that can be read again: one file, or the files that appear in a folder."""

import asyncio
import itertools
import logging
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from agent import config
from agent.audio import codec
from agent.audio.recorder import Recorder
from agent.audio.source import REST_S, Disk, hold_unreadable
from agent.errors import AudioError
from agent.health.conditions import Conditions
from agent.records import RATE_HZ, Take

log = logging.getLogger("source")
BLOCK_SAMPLES = 32_000  # of a recording in one raw record: two seconds, 62.5 KiB
REASON = ".reason.txt"  # beside a rejected file
NAME_BYTES_MAX = 255  # of a file, on nearly every file system
UNFINISHED = (".part", ".tmp", ".partial", ".crdownload")


class Changed(AudioError):
    """The recording is not what it was when it was begun."""


def key(path: Path) -> tuple[str, str]:
    """Name and identity of a recording: the same as long as nobody changes it."""
    status = path.stat()
    return codec.label(path), f"{status.st_size}:{status.st_mtime_ns}"


async def take_in(path: Path, recorder: Recorder, disk: Disk) -> Take:
    """One recording into the store, on from where it was; the take, ended.

    Raises AudioError when the recording cannot be read to its end, Changed when it is another one
    by then; what was taken of it stays.
    """
    begun = await disk.ask(path, lambda: key(path))
    await disk.ask(path, lambda: codec.check(path))
    take = await recorder.begin(*begun)
    if take.ended:
        return take
    try:
        async for block in disk.blocks(path, BLOCK_SAMPLES, skip=take.samples):
            take = await recorder.accept(take, block)
        if await disk.ask(path, lambda: key(path)) != begun:
            raise Changed(f"{take.name}: was changed while it was read", "write it, then move it")
    except (AudioError, OSError):
        await recorder.break_off(take)
        raise
    take = await recorder.accept(take, np.zeros(0, np.int16), end=True)
    log.info("%s: took in %s, %.1f s", recorder.source, take.name, take.samples / RATE_HZ)
    return take


class File:
    """One recording, taken in once."""

    def __init__(self, settings: config.File, recorder: Recorder, conditions: Conditions) -> None:
        self.name = settings.name
        self._path = Path(settings.path)
        self._recorder = recorder
        self._conditions = conditions
        self._disk = Disk(self.name, conditions)

    async def run(self) -> None:
        """Take it in; look again while it cannot be read."""
        while True:
            try:
                found = await self._disk.ask(self._path, lambda: key(self._path))
                await self._recorder.end_absent([found])
                await take_in(self._path, self._recorder, self._disk)
            except (AudioError, OSError) as error:
                hold_unreadable(self._conditions, self.name, error)
                await asyncio.sleep(REST_S)
            else:
                self._conditions.clear("source_unreadable", self.name)
                return


class Folder:
    """Recordings that appear in a folder; each ends in done/ or rejected/ below it."""

    def __init__(self, settings: config.Folder, recorder: Recorder, conditions: Conditions) -> None:
        self.name = settings.name
        self._path = Path(settings.path)
        self._poll_s = settings.poll_s
        self._settle_s = settings.settle_s
        self._recorder = recorder
        self._conditions = conditions
        self._disk = Disk(self.name, conditions)
        self.rejected = 0  # files in rejected/ when the agent started, and since
        self._looked = False
        self._seen: dict[str, tuple[int, int, float]] = {}  # size, mtime, since (monotonic)

    async def run(self) -> None:
        """Look every `poll_s`; take in what has settled, oldest first."""
        while True:
            try:
                await self._look_first()
                settled, trouble = await self._disk.ask(self._path, self._settled)
                trouble += [await self._tried(path) for path in settled]
            except OSError as error:
                trouble = [error]
            found = next(filter(None, trouble), None)
            if found:
                hold_unreadable(self._conditions, self.name, found)
            else:
                self._conditions.clear("source_unreadable", self.name)
            await asyncio.sleep(self._poll_s)

    async def _tried(self, path: Path) -> OSError | None:
        """Take in one file; what kept it from being moved holds up no other."""
        try:
            await self._one(path)
        except OSError as error:
            return error
        return None

    async def _look_first(self) -> None:
        """What was rejected before; which recordings were taken away while the agent was down."""
        if self._looked:
            return
        present, rejected = await self._disk.ask(self._path, self._first)
        await self._recorder.end_absent(present)
        self.rejected += rejected
        self._looked = True

    def _first(self) -> tuple[list[tuple[str, str]], int]:
        """The recordings that are there, and how many were rejected."""
        self._make()
        present = [key(path) for path in self._path.iterdir() if path.is_file()]
        found = (self._path / "rejected").iterdir()
        return present, sum(not path.name.endswith(REASON) for path in found)

    def _make(self) -> None:
        for below in ("done", "rejected"):
            (self._path / below).mkdir(parents=True, exist_ok=True)

    def _settled(self) -> tuple[list[Path], list[OSError | None]]:
        """Files whose size and time have not changed for `settle_s`; what cannot be looked at."""
        self._make()
        now = time.monotonic()
        found: dict[str, tuple[int, int, float]] = {}
        trouble: list[OSError | None] = []
        for entry in sorted(os.scandir(self._path), key=lambda e: e.name):
            if entry.name.startswith(".") or entry.name.endswith(UNFINISHED):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # taken away, or a link to nothing
            except OSError as error:
                trouble.append(error)
                continue
            if stat.S_ISREG(status.st_mode):
                size, mtime, since = self._seen.get(entry.name, (-1, -1, now))
                same = (size, mtime) == (status.st_size, status.st_mtime_ns)
                found[entry.name] = (status.st_size, status.st_mtime_ns, since if same else now)
        self._seen = found
        ready = [name for name, (_, _, since) in found.items() if now - since >= self._settle_s]
        ready.sort(key=lambda name: (found[name][1], name))
        return [self._path / name for name in ready], trouble

    async def _one(self, path: Path) -> None:
        try:
            take = await take_in(path, self._recorder, self._disk)
        except FileNotFoundError:
            return  # taken away while we looked
        except PermissionError as error:
            await self._reject(
                path, AudioError(f"{codec.label(path)}: {error.strerror}", "give read access")
            )
        except Changed as error:
            log.warning("%s: %s; it is read again once it rests", self.name, error)
        except AudioError as error:
            if await self._disk.ask(path, path.exists):
                await self._reject(path, error)
        else:
            with suppress(FileNotFoundError):  # taken away when it was done
                await self._disk.ask(path, lambda: _move(path, self._path / "done"))
            await self._recorder.forget(take)

    async def _reject(self, path: Path, error: AudioError) -> None:
        """Out of the way, with the reason beside it."""
        reason = f"{error}\n{error.hint}\n"

        def put_aside() -> Path:
            target = _move(path, self._path / "rejected")
            beside = _fitting(target.with_name(target.name + REASON))
            beside.write_text(reason, encoding="utf-8")
            return target

        target = await self._disk.ask(path, put_aside)
        self.rejected += 1
        log.warning(
            *("%s: refused %s; %s. Moved to rejected/%s", self.name, error, error.hint),
            codec.label(target),
        )


def _move(path: Path, folder: Path) -> Path:
    """Move a file into a folder, under a new name where one of that name lies there.

    It is there for good: a power cut must not bring back a recording whose take is forgotten.
    """
    names = itertools.chain(
        [path.name], (f"{path.stem}.{i}{path.suffix}" for i in itertools.count(1))
    )
    targets = (_fitting(folder / name) for name in names)
    moved = path.rename(next(target for target in targets if not target.exists()))
    for changed in (folder, path.parent):
        fd = os.open(changed, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return moved


def _fitting(path: Path) -> Path:
    """The path, its name shortened in front where the file system would find it too long."""
    name = os.fsencode(path.name)
    return path.with_name(os.fsdecode(name[-NAME_BYTES_MAX:]))
