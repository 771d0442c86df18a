"""The agent's side of a check: it runs the process that judges, and brings it what it asks for.

Limits  : one file of the metadata lies in the folder at a time, no larger than the check allows;
          the whole has `check_s_max`; one check at a time. Of what the process says beyond its
          answers, WORDS_BYTES_MAX are kept, of a line LINE_BYTES_MAX.
Recovery: a process that dies says nothing, and nothing is believed. `checker.py` keeps what was.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.config import Updates as Settings
from agent.known_time import KnownTime
from agent.threads import apart
from agent.updates.checking import (
    LINE_BYTES_MAX,
    Arrival,
    Checked,
    Order,
    Refused,
    Said,
    Want,
)
from agent.updates.fetched import NotFetched, disk_fault
from agent.updates.patience import Patience
from agent.updates.source import Absent, Away, Source

COMMAND = (sys.executable, "-P", "-m", "agent.updates.checker")
TRIES_MAX = 3  # of a file of the metadata: another source may answer
END_S = 2.0  # to end by itself
WORDS_BYTES_MAX = 4096  # of what a process says that dies
PIECE_BYTES = 1 << 16
_SAID: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)


class Reference(Struct, frozen=True):
    """Seconds since 1970, UTC. `judged`: it is now; else it was already, or is 0."""

    at_s: float
    judged: bool


class Believed(Struct, frozen=True):
    """What may be believed of a source, by which time."""

    source: str
    checked: Checked
    by: Reference


class Trust:
    """What this device believes, kept in `folder`, from the root file on."""

    def __init__(self, settings: Settings, folder: Path, known: KnownTime) -> None:
        self._settings = settings
        self._folder = folder
        self._known = known

    async def check(self, source: Source, target: str = "", *, lists: bool = False) -> Believed:
        """The source's metadata, checked, with what they say of `target`, or of all that there are.

        Raises NotFetched: `unreachable` where the source does not answer.
        """
        by = Reference(self._known.least_s(), self._known.sure)
        order = Order(
            root_file=self._root_file(),
            folder=str(await apart(self._beginning)),
            at_s=by.at_s,
            target=target,
            lists=lists,
        )
        limit_s = self._settings.check_s_max
        try:
            async with asyncio.timeout(limit_s):
                checked = await self._judged(order, source)
        except TimeoutError as error:
            raise NotFetched(
                "too_slow",
                f"{source.name}: its metadata did not come within {limit_s:g} s",
                "raise updates.check_s_max if the line is so slow; else look at the source",
            ) from error
        return Believed(source.name, checked, by)

    def _root_file(self) -> str:
        if self._settings.root_file is None:
            raise NotFetched(
                "not_set_up",
                "updates.root_file is not set: nobody is trusted to send anything",
                "enrol the device, or copy the repository's metadata/1.root.json, and name it",
            )
        return self._settings.root_file

    def _beginning(self) -> Path:
        """The folder for this root file; what another one led to believe is not believed."""
        try:
            root = Path(self._root_file()).read_bytes()
            here = self._folder / hashlib.sha256(root).hexdigest()[:16]
            for other in self._folder.glob("*"):
                if other != here and other.is_dir():
                    shutil.rmtree(other)
            here.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotFetched(
                "not_set_up",
                f"{error.filename}: {error.strerror}",
                "check updates.root_file, and that the store's folder can be written to",
            ) from error
        return here

    async def _judged(self, order: Order, source: Source) -> Checked:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        try:
            said = await self._talk(process, order, source)
        finally:
            await _ended(process)
        if isinstance(said, Refused):
            raise said.error()
        return said

    async def _talk(
        self, process: asyncio.subprocess.Process, order: Order, source: Source
    ) -> Checked | Refused:
        assert process.stdin and process.stdout
        answer: Struct = order
        while True:
            with contextlib.suppress(ConnectionError):  # then it says no more, either
                process.stdin.write(msgspec.json.encode(answer) + b"\n")
                await process.stdin.drain()
            try:
                said = _SAID.decode(await process.stdout.readline())
            except (ValueError, msgspec.DecodeError) as error:
                raise await _died(process) from error
            if not isinstance(said, Want):
                return said
            answer = await self._brought(source, said, Path(order.folder) / "incoming")

    async def _brought(self, source: Source, want: Want, here: Path) -> Arrival:
        """A file of the metadata, begun anew where it breaks off: it is small."""
        patience = Patience(self._settings, TRIES_MAX)
        while True:
            try:
                await _copy(source, want, here)
            except Absent:
                return Arrival(absent=True)
            except Away as error:
                await patience.rest(error, source.name)
            except OSError as error:
                raise disk_fault(error, here) from error
            else:
                return Arrival(here=str(here))


async def _copy(source: Source, want: Want, here: Path) -> None:
    """No more than a byte above what may be read: then it is known to be too much."""
    left = want.bytes_max + 1
    with here.open("wb") as file:
        async with contextlib.aclosing(source.pieces(want.path, 0, left)) as pieces:
            async for data in pieces:
                file.write(data[:left])
                left -= len(data)
                if left <= 0:
                    return


async def _died(process: asyncio.subprocess.Process) -> NotFetched:
    """Of a process that said nothing, or nothing that makes sense."""
    status, said = await _ended(process)
    words = said.decode(errors="replace").strip()
    last = words.rpartition("\n")[2][-200:]
    return NotFetched(
        "failed",
        f"the process that checks the metadata ended with status {status} {last}".rstrip(),
        "try again; if it stays so, report it with `holdfast logs`",
    )


async def _ended(process: asyncio.subprocess.Process) -> tuple[int, bytes]:
    """Its exit status, and the end of what it said on stderr.

    It ends where nobody brings it any more, or is killed: in this order, since asyncio loses the
    status of one that is killed when it has just ended by itself. Its pipes are read to their end,
    or asyncio would still have them when the loop is closed; what it goes on to say is not kept.
    """
    assert process.stdin and process.stdout and process.stderr
    process.stdin.close()
    said = bytearray()
    try:
        async with asyncio.timeout(END_S):
            await asyncio.gather(_drain(process.stdout), _drain(process.stderr, said))
            return await process.wait(), bytes(said)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.gather(_drain(process.stdout), _drain(process.stderr, said))
        return await process.wait(), bytes(said)


async def _drain(stream: asyncio.StreamReader, end: bytearray | None = None) -> None:
    """Read it up, and keep the last WORDS_BYTES_MAX of it in `end`."""
    while data := await stream.read(PIECE_BYTES):
        if end is not None:
            end += data
            del end[:-WORDS_BYTES_MAX]
