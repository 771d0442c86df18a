"""Sources that are heard only once: a microphone, and a loop of recordings in its stead."""

import asyncio
import logging
import shutil
from pathlib import Path

import numpy as np

from agent import config
from agent.audio import codec
from agent.audio.recorder import Recorder
from agent.audio.source import REST_S, Disk, hold_unreadable
from agent.clock import Clock
from agent.errors import AudioError
from agent.health.conditions import Conditions
from agent.records import RATE_HZ

log = logging.getLogger("source")
ROUND_S_MIN = 1.0  # a folder of nearly no sound must not keep the machine busy
WORDS_BYTES_MAX = 500  # of what a failed arecord said
KILLED_S = 5.0  # an arecord that is still there then sits in its driver
CALM_S = 60.0  # without an overrun, after which it is over


class Loop:
    """The recordings of a folder, at the speed of real sound, again and again."""

    def __init__(
        self,
        settings: config.Loop,
        chunk_s: float,
        recorder: Recorder,
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self.name = settings.name
        self._path = Path(settings.path)
        self._chunk = int(chunk_s * RATE_HZ)
        self._recorder = recorder
        self._conditions = conditions
        self._disk = Disk(self.name, conditions)
        self._clock = clock

    async def run(self) -> None:
        """Play one after the other; rest when there is little to play, or what cannot be read."""
        while True:
            began = self._clock.monotonic()
            trouble: list[AudioError | OSError | None]
            try:
                paths = await self._disk.ask(self._path, self._recordings)
                trouble = [await self._tried(path) for path in paths]
            except (AudioError, OSError) as error:
                trouble = [error]
            found = next((error for error in trouble if error), None)
            if found:
                hold_unreadable(self._conditions, self.name, found)
            else:
                self._conditions.clear("source_unreadable", self.name)
            took_s = self._clock.monotonic() - began
            await asyncio.sleep(max(0.0, (REST_S if found else ROUND_S_MIN) - took_s))

    def _recordings(self) -> list[Path]:
        found = (p for p in self._path.iterdir() if p.suffix.lower() in codec.SUFFIXES)
        paths = sorted(p for p in found if p.is_file())
        if not paths:
            raise AudioError(f"{self._path}: no recordings in it", f"add {codec.KNOWN}")
        return paths

    async def _tried(self, path: Path) -> AudioError | OSError | None:
        """Play one file; what is wrong with it keeps no other from being played."""
        try:
            await self._play(path)
        except (AudioError, OSError) as error:
            return error
        return None

    async def _play(self, path: Path) -> None:
        name = codec.label(path)
        log.info("%s: playing %s", self.name, name)
        due = self._clock.monotonic()
        try:
            async for block in self._disk.blocks(path, self._chunk):
                due += len(block) / RATE_HZ  # a microphone has a sound when it is over
                await asyncio.sleep(due - self._clock.monotonic())
                await self._recorder.accept_live(name, block)
        except (AudioError, OSError):
            await self._recorder.end_live()
            raise
        await self._recorder.end_live()


class Microphone:
    """An ALSA device, read by arecord in a process of its own: a driver that hangs, hangs alone."""

    def __init__(
        self,
        settings: config.Microphone,
        chunk_s: float,
        recorder: Recorder,
        conditions: Conditions,
        clock: Clock,
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._frames = int(chunk_s * settings.rate_hz)
        self._silence_s = 10 * chunk_s + 1.0
        self._recorder = recorder
        self._conditions = conditions
        self._clock = clock
        self._overruns = 0  # not yet counted in the ledger
        self._overrun_at = 0.0  # monotonic

    async def run(self) -> None:
        """Record; when arecord ends or gives nothing, say why and start it again."""
        while True:
            try:
                await self._record()
            except (AudioError, OSError) as error:
                await self._recorder.end_live()
                hold_unreadable(self._conditions, self.name, error)
            await asyncio.sleep(self._settings.retry_s)

    async def _record(self) -> None:
        program = shutil.which("arecord")
        if program is None:
            raise AudioError("arecord is not installed", "apt-get install alsa-utils")
        form = (f"--rate={self._settings.rate_hz}", f"--channels={self._settings.channels}")
        process = await asyncio.create_subprocess_exec(
            *(program, "--quiet", f"--device={self._settings.device}", "--file-type=raw"),
            *("--format=S16_LE", *form),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said = asyncio.create_task(self._words(process.stderr))
        try:
            await self._hear(process.stdout)
            raise AudioError(
                f"arecord ended: {await said or 'without a word'}",
                "`arecord -L` lists the devices",
            )
        finally:
            if process.returncode is None:
                process.kill()
            await self._gone(asyncio.gather(process.stdout.read(), said, process.wait()))

    async def _gone(self, end: "asyncio.Future[tuple[bytes, str, int]]") -> None:
        """Wait for the end of arecord and of its pipes; say so where it does not come.

        Another one would meet the same driver, so there is none before that.
        """
        await asyncio.wait([end], timeout=KILLED_S)
        if not end.done():
            await self._recorder.end_live()
            self._conditions.hold(
                *("source_unreadable", self.name, "warning"),
                "arecord was killed, and is still there: it sits in its driver",
                "unplug the device, or restart the machine; it is waited for",
            )
        await end

    async def _hear(self, stdout: asyncio.StreamReader) -> None:
        """Chunk after chunk until the end of the stream."""
        resampler = codec.Resampler(self._settings.rate_hz)
        width = 2 * self._settings.channels
        last = False
        while not last:
            try:
                async with asyncio.timeout(self._silence_s):
                    sound = await stdout.readexactly(self._frames * width)
            except asyncio.IncompleteReadError as error:
                sound, last = error.partial[: len(error.partial) // width * width], True
            except TimeoutError as error:
                raise AudioError(
                    f"no sound for {self._silence_s:.0f} s", "check the device and its cable"
                ) from error
            frames = np.frombuffer(sound, "<i2").reshape(-1, self._settings.channels)
            pcm = resampler.push(frames.astype(np.float32) / 32768.0, last=last)
            if len(pcm):
                await self._recorder.accept_live("live", pcm)
                self._conditions.clear("source_unreadable", self.name)
            await self._count_overruns()

    async def _words(self, stderr: asyncio.StreamReader) -> str:
        """What arecord said at the end; all that it says is read, so that its pipe never fills."""
        said = b""
        while more := await stderr.read(WORDS_BYTES_MAX):
            self._overruns += more.count(b"overrun")
            said = (said + more)[-WORDS_BYTES_MAX:]
        return said.decode(errors="replace").strip()

    async def _count_overruns(self) -> None:
        """What the device could not hold until arecord came is lost, and counted."""
        now = self._clock.monotonic()
        if self._overruns:
            count, self._overruns, self._overrun_at = self._overruns, 0, now
            await self._recorder.lose(count, "overrun")
            self._conditions.hold(
                "sound_lost",
                self.name,
                "warning",
                "the device had more sound than it could hold (overrun); a stretch is missing",
                "the machine is too busy or its disk too slow: see `holdfast status`",
            )
        elif now - self._overrun_at > CALM_S:
            self._conditions.clear("sound_lost", self.name)
