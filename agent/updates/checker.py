"""The process that judges metadata by The Update Framework: `python -P -m agent.updates.checker`.

tuf and all that it brings stay out of the agent's memory so, and what a stranger's JSON may do is
bounded. It has no way to anywhere: the agent brings it each file that it wants (checking.py).

Limits  : MEMORY_BYTES_MAX of address space, CPU_S_MAX of the processor, and tuf's own: 256 new
          roots in one check, 512 kB of a root, 16 kB of a timestamp, 2 MB of a snapshot, 5 MB of
          targets, 32 delegations.
Recovery: files are replaced as a whole; what a kill leaves over is removed at the next start.
"""

import os
import resource
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from agent import child
from agent.protocol.content import METADATA
from agent.updates.checking import (
    TARGETS_MAX,
    Arrival,
    Checked,
    Order,
    Refused,
    Said,
    Target,
    Want,
)
from agent.updates.fetched import NotFetched, disk_fault
from agent.updates.marks import Marks
from agent.updates.verdicts import ASK_FLEET, Offered, said_by, verdict

MEMORY_BYTES_MAX = 512 << 20
CPU_S_MAX = 60
ROOT_BYTES_MAX = 512_000
SIGNERS = (Timestamp.type, Snapshot.type, Targets.type)
COPIES = "metadata"  # tuf's, apart: it names files as roles that others may name
REPOSITORY = "repository:"  # what stands for the source in the names that tuf makes


class Line:
    """The way to the agent."""

    def __init__(self, asks: BinaryIO, answers: BinaryIO) -> None:
        self._asks = asks
        self._answers = answers

    def order(self) -> Order:
        """The first line."""
        return msgspec.json.decode(self._asks.readline(), type=Order)

    def want(self, path: str, bytes_max: int) -> bytes | None:
        """A file; None: there is none."""
        self.say(Want(path, bytes_max))
        arrival = msgspec.json.decode(self._asks.readline(), type=Arrival)
        return None if arrival.absent else Path(arrival.here).read_bytes()

    def say(self, what: Want | Checked | Refused) -> None:
        """One line."""
        self._answers.write(msgspec.json.encode(what) + b"\n")
        self._answers.flush()


class Wanted(FetcherInterface):
    """tuf's way to files: it asks the agent. `offered` is what came last."""

    def __init__(self, line: Line) -> None:
        self.offered = Offered()
        self._line = line

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As tuf has it."""
        path = f"{METADATA}/{url.rpartition('/')[2]}"
        data = self._line.want(path, max_length)
        if data is None:
            raise exceptions.DownloadHTTPError(f"{path}: is not there", 404)
        self.offered = Offered(path, data)
        if len(data) > max_length:
            raise exceptions.DownloadLengthMismatchError(f"{path}: more than {max_length} bytes")
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise exceptions.DownloadError(f"{url}: targets are not fetched here")


def check(order: Order, line: Line) -> Checked:
    """What may be believed of the repository. Raises NotFetched."""
    folder = Path(order.folder)
    wanted = Wanted(line)
    try:
        for left in (folder / COPIES).glob("tmp*"):
            left.unlink()
        marks = Marks(folder / "marks.json")
        updater = _updater(order, wanted)
        try:
            updater.refresh()
            target = updater.get_targetinfo(order.target) if order.target else None
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise verdict(error, wanted.offered, _known(updater, marks)) from error
        checked = _checked(order, updater, target)
        keys = _signers(updater)
        if marks.differ(checked.versions, keys):
            _durable(folder / COPIES)
            marks.keep(checked.versions, keys)
        if order.target and target is None:
            raise NotFetched(
                "no_target",
                f"the repository signs no {order.target} (targets {checked.versions['targets']})",
                "see what there is: updates.check; publish it: holdfast-fleet updates add",
            )
        return checked
    except OSError as error:
        raise disk_fault(error, folder) from error


def _updater(order: Order, wanted: Wanted) -> Updater:
    """tuf's client, that judges by our time. Raises NotFetched."""
    try:
        updater = Updater(
            metadata_dir=str(Path(order.folder) / COPIES),
            metadata_base_url=REPOSITORY,
            fetcher=wanted,
            bootstrap=_root(Path(order.root_file)),
        )
    except exceptions.RepositoryError as error:
        raise NotFetched(
            "not_set_up",
            f"updates.root_file: {order.root_file}: {said_by(error)}",
            "copy the repository's metadata/1.root.json there, as enrolment does",
        ) from error
    # The one thing that tuf takes from the wall clock, and offers no way to give.
    updater._trusted_set.reference_time = _instant(order.at_s)
    return updater


def _known(updater: Updater, marks: Marks) -> dict[str, int]:
    """The versions that nothing may be older than: ours, and those that tuf has come to trust."""
    trusted = updater._trusted_set
    found = [(role, marks.version(role)) for role in SIGNERS]
    found.append((Root.type, trusted.root.version))
    if Timestamp.type in trusted:
        found.append((Timestamp.type, trusted.timestamp.version))
        found.append((Snapshot.type, trusted.timestamp.snapshot_meta.version))
    if Snapshot.type in trusted:
        found += [(n.removesuffix(".json"), m.version) for n, m in trusted.snapshot.meta.items()]
    return {role: max(v for r, v in found if r == role) for role, _ in found}


def _signers(updater: Updater) -> list[str]:
    """The keys that sign versions."""
    roles = updater._trusted_set.root.roles
    return sorted({key for role in SIGNERS for key in roles[role].keyids})


def _checked(order: Order, updater: Updater, target: TargetFile | None) -> Checked:
    """What it comes to. Raises NotFetched for what cannot be told, though it is signed."""
    trusted = updater._trusted_set
    roles = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
    every = sorted(trusted.targets.targets.values(), key=lambda one: one.path)
    found = every[:TARGETS_MAX] if order.lists else [target] if target else []
    checked = Checked(
        versions={role.type: role.version for role in roles},
        expires={role.type: role.expires.isoformat() for role in roles},
        targets=[_told(one) for one in found],
        unlisted=len(every) - len(found) if order.lists else 0,
    )
    try:
        msgspec.json.decode(msgspec.json.encode(checked), type=Said)
    except (ValueError, OverflowError, RecursionError) as error:
        raise NotFetched(
            "unreadable", f"signed, but not what can be told: {said_by(error)}", ASK_FLEET
        ) from error
    return checked


def _root(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ROOT_BYTES_MAX + 1)
    except OSError as error:
        raise NotFetched(
            "not_set_up",
            f"updates.root_file: {path}: {error.strerror}",
            "copy the repository's metadata/1.root.json there, as enrolment does",
        ) from error


def _instant(at_s: float) -> datetime:
    try:
        return datetime.fromtimestamp(at_s, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC) if at_s > 0 else datetime.fromtimestamp(0, UTC)


def _told(found: TargetFile) -> Target:
    custom = found.custom
    return Target(
        path=found.path,
        size_bytes=found.length,
        sha256=str(found.hashes.get("sha256", "")),
        custom=custom if isinstance(custom, dict) else {},
    )


def _durable(folder: Path) -> None:
    """tuf replaces files, and leaves it to the system when that is on the disk."""
    for path in (folder, folder / "root_history", *folder.glob("*.json")):
        if path.exists():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def main() -> None:
    """Take an order, check, say what came of it."""
    child.live_with(int(sys.argv[1]))
    child.be_named("hf-updates")
    for bound, most in ((resource.RLIMIT_AS, MEMORY_BYTES_MAX), (resource.RLIMIT_CPU, CPU_S_MAX)):
        resource.setrlimit(bound, (most, most))
    line = Line(sys.stdin.buffer, sys.stdout.buffer)
    try:
        line.say(check(line.order(), line))
    except NotFetched as error:
        message = str(error).removeprefix(f"{error.reason}: ")
        line.say(Refused(reason=error.reason, message=message, hint=error.hint))


if __name__ == "__main__":
    main()
