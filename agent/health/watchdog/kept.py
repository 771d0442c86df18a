"""A small file that is written anew whenever what it holds has changed, by a loop of its own."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from agent import whole_file

log = logging.getLogger("watchdog")


class KeptFile:
    """An async context manager, which leaves nothing unwritten; `run` writes. Changes that come
    while it is written are in the next one."""

    def __init__(self, path: Path, content: Callable[[], bytes]) -> None:
        self._path = path
        self._content = content
        self._fresh = asyncio.Event()
        self._kept = asyncio.Event()
        self._kept.set()
        self._writing = threading.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._fresh.is_set():  # the last change may be why all of this ends
            await self._write()

    def changed(self) -> None:
        """There is something to write; never waits."""
        self._fresh.set()
        self._kept.clear()

    async def kept(self) -> None:
        """Return when all changes are on the disk, or it refused them, while it runs."""
        await self._kept.wait()

    async def run(self) -> None:
        """Write, for ever."""
        while True:
            await self._fresh.wait()
            await self._write()

    async def _write(self) -> None:
        self._fresh.clear()
        try:
            await asyncio.to_thread(self._replace, self._content())
        except OSError as error:  # snapshot_unwritable says it of this folder
            log.warning("%s: %s", self._path, error.strerror)
        if not self._fresh.is_set():
            self._kept.set()

    def _replace(self, content: bytes) -> None:
        with self._writing:  # the last one may still be at it when all of this ends
            whole_file.replace(self._path, content)
