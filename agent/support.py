"""What somebody needs who looks into a device from afar, as one archive (docs/support.md).

Limits  : a member has MEMBER_BYTES_MAX, the archive ARCHIVE_BYTES_MAX: where it would have more, a
          member has less. Of a text that is longer its end is kept, of a document its beginning, as
          NAME.cut. A part that has not told within PART_S is left out.
Format  : tar, gzip. `contents.json` is first: {"format": 1, "device", "version", "at_us",
          "members": {NAME: {"size_bytes", "cut_bytes"}}, "missing": {NAME: WHY}}. A member whose
          name ends in .json is a document; all else is text, UTF-8.
Recovery: none; it is made anew each time, in memory.

Each member goes through masked.py: no password, token or private key is in it; nor is sound.
"""

import asyncio
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agent.clock import Clock
from agent.errors import HoldfastError
from agent.masked import masked_text, masked_value
from agent.threads import apart

FORMAT = 1
MEMBER_BYTES_MAX = 1 << 20
MEMBER_BYTES_MIN = 1 << 12
ARCHIVE_BYTES_MAX = 4 << 20
PART_S = 15.0
JOURNAL_S = 10.0  # a journal on a slow disk
JOURNAL = (
    *("journalctl", "--unit=holdfast", "--no-pager", "--quiet", "--output=short-iso-precise"),
    "--lines=5000",
)
STEP_BYTES = 64 << 10
Part = Callable[[], Awaitable[Any]]


class Origin(NamedTuple):
    """Whose archive it is: the device, the version of its agent."""

    device: str
    version: str


class Support:
    """Asks the parts, by the names of their members."""

    def __init__(self, origin: Origin, parts: Mapping[str, Part], clock: Clock) -> None:
        """A part tells a text, or anything that JSON can say."""
        self._origin = origin
        self._parts = parts
        self._clock = clock
        self._one = asyncio.Lock()  # archive in memory

    async def archive(self) -> bytes:
        """All there is. What a part does not tell is named in it as missing."""
        async with self._one:
            told: dict[str, Any] = {}
            missing: dict[str, str] = {}
            asked = (self._ask(name, part, told, missing) for name, part in self._parts.items())
            await asyncio.gather(*asked)
            at_us = int(self._clock.wall() * 1e6)
            told = {name: told[name] for name in self._parts if name in told}
            return await apart(partial(packed, self._origin, told, missing, at_us))

    async def _ask(
        self, name: str, part: Part, told: dict[str, Any], missing: dict[str, str]
    ) -> None:
        try:
            async with asyncio.timeout(PART_S):
                told[name] = await part()
        except TimeoutError:
            missing[name] = f"not told within {PART_S:g} s"
        except (HoldfastError, OSError) as error:
            missing[name] = str(error)


def packed(
    origin: Origin,
    told: Mapping[str, Any],
    missing: Mapping[str, str],
    at_us: int,
    bytes_max: int = ARCHIVE_BYTES_MAX,
) -> bytes:
    """The archive of what was told; `at_us` is a wall label."""
    members = {name: _encoded(value) for name, value in told.items()}
    most = MEMBER_BYTES_MAX
    while True:
        made = _tar(origin, members, missing, at_us, most)
        if len(made) <= bytes_max or most <= MEMBER_BYTES_MIN:
            return made
        most //= 4


def journal(command: Sequence[str] = JOURNAL) -> str:
    """The end of the unit's journal, of all starts of the machine that are kept.

    Raises HoldfastError where there is none that this user may read.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise HoldfastError(f"{command[0]}: {error.strerror}", "no systemd, no journal") from error
    kept = bytearray()
    limit = threading.Timer(JOURNAL_S, process.kill)
    limit.start()
    with process, process.stdout or io.BytesIO() as out:
        while step := out.read(STEP_BYTES):
            kept += step
            del kept[:-MEMBER_BYTES_MAX]
    limit.cancel()
    if len(kept) == MEMBER_BYTES_MAX:  # the first line may lack what its secret is known by
        del kept[: kept.find(b"\n") + 1]
    if process.returncode or not kept:
        raise HoldfastError(
            f"{command[0]} gave nothing, or not all (status {process.returncode})",
            "the agent's user must be of group systemd-journal to read it",
        )
    return kept.decode(errors="replace")


def machine(folder: Path) -> dict[str, Any]:
    """Kernel, time up, memory, and the disk under `folder`, as they are now. Raises OSError."""
    disk = shutil.disk_usage(folder)
    kernel = os.uname()
    return {
        "kernel": f"{kernel.sysname} {kernel.release} {kernel.version} {kernel.machine}",
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "up_s": float(Path("/proc/uptime").read_text().split()[0]),
        "memory": Path("/proc/meminfo").read_text().splitlines(),
        "disk": {"folder": str(folder), "bytes": disk.total, "free_bytes": disk.free},
    }


def _encoded(value: Any) -> bytes:
    if isinstance(value, str):
        return masked_text(value).encode(errors="replace")
    plain = msgspec.json.decode(msgspec.json.encode(value))  # without types of ours
    return json.dumps(masked_value(plain), indent=1, ensure_ascii=False).encode(errors="replace")


def _tar(
    origin: Origin, members: Mapping[str, bytes], missing: Mapping[str, str], at_us: int, most: int
) -> bytes:
    import tarfile  # not needed by an agent that is not asked

    kept: dict[str, bytes] = {}
    sizes: dict[str, dict[str, int]] = {}
    for whole, content in members.items():
        name, rest = _cut(whole, content, most)
        kept[name] = rest
        sizes[name] = {"size_bytes": len(rest), "cut_bytes": len(content) - len(rest)}
    contents = {"format": FORMAT, **origin._asdict(), "at_us": at_us}
    contents |= {"members": sizes, "missing": dict(missing)}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=6) as tar:
        for name, content in {"contents.json": _encoded(contents), **kept}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(content), at_us // 1_000_000, 0o600
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _cut(name: str, content: bytes, most: int) -> tuple[str, bytes]:
    if len(content) <= most:
        return name, content
    document = name.endswith(".json")
    part = content[:most] if document else content[-most:]
    return f"{name}.cut" if document else name, part.decode(errors="ignore").encode()
