"""What one run of the agent leaves to the next: `starts.json`, beside the store.

Limits  : one small file, of one agent: whoever finds `starts.json.lock` held is a second one, which
          counts nothing and writes nothing. It is written at a start, at an ordered end, before the
          machine is rebooted, and when safe mode changes; between these the last sign of life is
          that of `status.json`, which is written every few seconds anyway, and not fsynced.
Format  : JSON, Book, replaced as a whole and fsynced. `ran_s` is the running time at `run.alive_s`.
Recovery: without the file, or with one that cannot be read (it is said), the cause of this start is
          unknown and the budgets are whole. Where it cannot be written (a condition says so) they
          hold for this run alone, and nobody resets what he cannot count. No start fails of it.
"""

import fcntl
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from agent import plain_file, whole_file
from agent.health.starts.budget import Account, clamped
from agent.health.starts.causes import Cause, Run, Seconds

log = logging.getLogger("watchdog")
FILE_BYTES_MAX = 1 << 20
SNAPSHOT_BYTES_MAX = 16 << 20
PANICS_KEPT = 256
Count = Annotated[int, Meta(ge=0)]


class Book(Struct, frozen=True):
    """A run, the running time, what was spent, and how often the agent began of which cause.

    `panics` are the kernel's last words that are known.
    """

    run: Run
    ran_s: Seconds
    account: Account
    starts: dict[Cause, Count] = {}
    panics: tuple[str, ...] = ()


class Alive(Struct, frozen=True):
    """A sign of life: a moment of a boot's monotonic clock."""

    boot: str
    mono_s: Seconds


class _Snapshot(Struct, frozen=True):
    """What of `status.json` is read here."""

    alive: Alive


def read(path: Path, snapshot: Path) -> Book | None:
    """The last run's book, with the last sign of life of its snapshot; None: there is none."""
    try:
        with plain_file.opened(path) as file:
            book = msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Book)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s: %s; the budgets of restarts and resets begin anew", path, error)
        return None
    book = replace(book, account=clamped(book.account, book.ran_s))
    run, alive = book.run, _alive(snapshot)
    if alive is None or alive.boot != run.boot or alive.mono_s <= run.alive_s:
        return book
    later = replace(run, alive_s=alive.mono_s)
    return replace(book, run=later, ran_s=book.ran_s + alive.mono_s - run.alive_s)


def write(path: Path, book: Book) -> None:
    """Have it on the disk. Raises OSError."""
    whole_file.replace(path, msgspec.json.format(msgspec.json.encode(book)) + b"\n")


def counted(path: Path) -> bool:
    """Have the unit forget the starts that no book knew (provisioning/uncounted.sh); whether it is.

    In place: on a disk that is full later on, the unit goes on counting in the same block.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(fd, b"0\n")
            os.ftruncate(fd, 2)
        finally:
            os.close(fd)
    except FileNotFoundError:  # no unit counts
        return True
    except OSError as error:
        log.warning("%s: %s: the unit takes this start for one that failed", path, error)
        return False
    return True


def running_s(book: Book | None, boot: str, mono_s: float) -> float:
    """The running time now: within a boot its clock counts, of another one what it has run so far.

    What went by between the last sign of life and a power cut, and without power, does not.
    """
    if book is None:
        return 0.0
    since_s = book.run.alive_s if book.run.boot == boot else 0.0
    return book.ran_s + max(0.0, mono_s - since_s)


def locked(path: Path) -> int | None:
    """Keep the book for this process; None: another one has it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def panics(folder: Path) -> tuple[str, ...]:
    """The last words of the kernel that systemd-pstore keeps; none where nobody may look."""
    try:
        return _newest(one.name for one in folder.iterdir())
    except OSError:  # most machines have none
        return ()


def _newest(names: Iterable[str]) -> tuple[str, ...]:
    """Their names begin with the time."""
    return tuple(sorted(names)[-PANICS_KEPT:])


def _alive(snapshot: Path) -> Alive | None:
    try:
        with plain_file.opened(snapshot) as file:
            return msgspec.json.decode(file.read(SNAPSHOT_BYTES_MAX), type=_Snapshot).alive
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # a power cut may have torn it
