"""One file of the repository, from whichever source has it, into its part."""

import asyncio
import contextlib
import logging
from functools import partial
from pathlib import Path

from agent.config import Updates as Settings
from agent.tasks import moved
from agent.threads import apart
from agent.updates.fetched import NotFetched, Told
from agent.updates.patience import Patience
from agent.updates.source import Away, Source
from agent.updates.staging import Part

log = logging.getLogger("updates")


class Download:
    """Of `size_bytes` that have this digest."""

    def __init__(
        self, settings: Settings, part: Part, path: str, size_bytes: int, digest: str, told: Told
    ) -> None:
        """`path` is where it lies in a repository."""
        self._settings = settings
        self._part = part
        self._path = path
        self._size_bytes = size_bytes
        self._digest = digest
        self._told = told

    async def whole(self, source: Source) -> Path:
        """The file, once it is whole and right. Raises NotFetched, Absent; what came is kept."""
        resumed = self._part.have
        if resumed:
            log.info("%s goes on at byte %d of %d", self._path, resumed, self._size_bytes)
        while True:
            await self._filled(source)
            if path := await apart(lambda: self._part.finish(self._digest)):
                return path
            await apart(self._part.anew)
            if not resumed:
                break
            resumed = 0  # what was there before may be what is wrong: a power cut can do that
            log.warning("%s has not the digest it should have: fetched anew", self._path)
        raise NotFetched(
            "bad_digest",
            f"{source.name}: {self._path} has not the bytes that were signed",
            "copy it into the repository anew; if it stays so, somebody alters it",
        )

    async def _filled(self, source: Source) -> None:
        """Until as many bytes are there as there should be."""
        patience = Patience(self._settings)
        while self._part.have < self._size_bytes:
            begun = self._part.have
            try:
                await self._stretch(source)
                fault = Away(
                    f"{source.name}: {self._path} ends at byte {self._part.have:,} of "
                    f"{self._size_bytes:,}",
                    "copy it into the repository anew",
                )
                is_short = self._part.have < self._size_bytes
            except Away as error:
                fault, is_short = error, False
            if self._part.have > begun:
                patience.gained()
            if self._part.have < self._size_bytes:
                try:
                    await patience.rest(fault, source.name)
                except NotFetched as error:
                    if is_short:
                        raise NotFetched("too_short", str(fault), fault.hint) from error
                    raise

    async def _stretch(self, source: Source) -> None:
        """As much as comes in one go. Raises Away, Absent, NotFetched."""
        settings, part = self._settings, self._part
        loop = asyncio.get_running_loop()
        begun_s, begun = loop.time(), part.have
        more = self._size_bytes - part.have + 1  # one byte too many is seen so
        try:
            async with (
                asyncio.timeout(settings.stall_s) as deadline,
                contextlib.aclosing(source.pieces(self._path, part.have, more)) as pieces,
            ):
                async for data in pieces:
                    moved(deadline, None)
                    await apart(partial(part.append, data))
                    await self._told(part.have / self._size_bytes, f"{part.have:,} bytes")
                    if rate := settings.rate_bytes_per_s_max:
                        due_s = begun_s + (part.have - begun) / rate
                        await asyncio.sleep(due_s - loop.time())
                    moved(deadline, loop.time() + settings.stall_s)
        except TimeoutError as error:
            raise Away(
                f"{source.name}: no byte of {self._path} in {settings.stall_s:g} s",
                "look at the way to that source, and at its load",
            ) from error
