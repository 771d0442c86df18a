"""The book of versions in the agent's hand: each change is on the disk before it holds."""

import threading
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent import config_file, yaml_tree
from agent.clock import Clock
from agent.config import Config
from agent.errors import ConfigError, HoldfastError, NotNow, NotThere, StoreFull
from agent.versions.folder import DOCUMENT_BYTES_MAX, VERSIONS_MAX, Folder, digest
from agent.versions.forms import (
    NO_CHANGE,
    RESTARTS_KEPT,
    Book,
    Change,
    Restart,
    Trial,
    Version,
)

RESTART_S = 600.0  # StartLimitIntervalSec of the unit
# Ordered in it: each may cost two starts, and ten of them have systemd reboot the machine.
APPLIES_MAX, ROLLBACKS_MAX = 3, 4


class Kept:
    """Used in one thread at a time; its files may hang, so not in the loop's.

    What cannot be written raises StoreFull, and nothing has changed.
    """

    def __init__(self, file: Path, folder: Folder | None, book: Book, clock: Clock) -> None:
        """`file` is that of --config; no `folder`: nothing can be kept."""
        self.file = file
        self.book = book
        self.folder = folder
        self._clock = clock
        self._changing = threading.Lock()

    def document(self, number: int) -> bytes:
        """A version as it came. Raises NotThere, HoldfastError."""
        version = self.book.version(number)
        if self.folder is None:
            raise NotThere(f"version {version.number} is not kept", _UNKEPT)
        return self.folder.get(self.book, number)

    def data(self, number: int) -> dict[str, Any]:
        """What a version says, as it is written. Raises ConfigError."""
        return yaml_tree.tree(self.document(number), Path(f"version {number}"))[1]

    def settings(self, number: int) -> Config:
        """What it says. Raises HoldfastError: also where this Holdfast does not take it."""
        document = self.document(number)
        origin = self.book.version(number).origin
        where = self.file if origin == "file" else Path(f"version {number}")
        return config_file.parse(document, where)

    def add(
        self,
        document: bytes,
        version: Version,
        trial: Trial | str,
        order: str = "",
        change: Change = NO_CHANGE,
    ) -> int:
        """Keep a new version, and choose it: its number. Raises HoldfastError.

        In place of a trial, why there is none. `change` is kept beside the choice.
        """
        if len(document) > DOCUMENT_BYTES_MAX:
            raise ConfigError(
                f"a document of {len(document)} bytes; expected {DOCUMENT_BYTES_MAX} at most",
                "leave comments out",
            )
        with self._changing:
            book, now_us = self.book, self._now_us()
            number = book.next
            version = replace(
                version,
                number=number,
                digest=digest(document),
                size_bytes=len(document),
                at_us=now_us,
            )
            book = replace(book, next=number + 1, versions=(*book.versions, version))
            tried = None if isinstance(trial, str) else trial
            book = book.choosing(number, tried, now_us, order, version.why, change)
            if isinstance(trial, str):
                book = book.confirming(now_us, trial)
            if version.origin == "file":
                book = replace(book, file_digest=version.digest)
            self._write(_bounded(book), (number, document))
            return number

    def choose(self, number: int, trial: Trial, order: str, why: str, change: Change) -> None:
        """Have one that is kept. Raises HoldfastError."""
        with self._changing:
            self.settings(number)  # before anything relies on it
            book = self.book.choosing(number, trial, self._now_us(), order, why, change)
            self._write(book)

    def started(self) -> None:
        """The agent begins on the live version, which is on trial. Raises StoreFull."""
        with self._changing:
            trial = self.book.trial
            assert trial, "else there is nothing to count"
            word = f"start {trial.starts + 1}"
            book = self.book.noted("started", self._now_us(), trial.order, word)
            self._write(replace(book, trial=replace(trial, starts=trial.starts + 1)))

    def put_down(self) -> None:
        """The agent ends in order, as it was told to: that speaks against no version.

        Raises StoreFull.
        """
        with self._changing:
            trial = self.book.trial
            if trial and trial.starts:
                self._write(replace(self.book, trial=replace(trial, starts=trial.starts - 1)))

    def in_force(self) -> None:
        """All of the live version holds, and its trial goes on. Raises StoreFull."""
        with self._changing:
            order = self.book.trial.order if self.book.trial else ""
            self._write(self.book.noted("in_force", self._now_us(), order))

    def confirm(self, why: str) -> None:
        """The live version stays. Raises StoreFull."""
        with self._changing:
            self._write(self.book.confirming(self._now_us(), why))

    def take_back(self, why: str) -> tuple[int, Config]:
        """End the live version's trial: what comes back. Raises HoldfastError."""
        with self._changing:
            number, settings = self.usable(self.book.confirmed)
            self._write(self.book.taking_back(number, self._now_us(), why))
            return number, settings

    def usable(self, first: int) -> tuple[int, Config]:
        """This version, or of those confirmed before the last that can be used.

        Raises HoldfastError: none can.
        """
        known = [s.number for s in reversed(self.book.steps) if s.state == "confirmed"]
        fault: HoldfastError | None = None
        for number in dict.fromkeys([first, *known]):
            try:
                return number, self.settings(number)
            except HoldfastError as error:
                fault = fault or error
        raise fault or NotThere("no version is kept", _UNKEPT)

    def seen(self, file_digest: str) -> None:
        """The file of --config has this content now, and it is the live version's."""
        with self._changing:
            self._write(replace(self.book, file_digest=file_digest))

    def restarts(self, most: int | None) -> None:
        """Count a restart; with `most` (None: any), raises NotNow where there were as many."""
        with self._changing:
            now = Restart(self._clock.boot, self._clock.monotonic())
            recent = [
                one
                for one in self.book.restarts
                if one.boot == now.boot and now.at_s - one.at_s < RESTART_S
            ]
            if most is not None and len(recent) >= most:
                left_s = RESTART_S - (now.at_s - recent[-most].at_s)
                raise NotNow(
                    f"the agent was restarted {len(recent)} times within {RESTART_S / 60:.0f} "
                    "minutes by order; more would have systemd reboot this machine",
                    f"try again in {left_s:.0f} s",
                )
            self._write(replace(self.book, restarts=(*recent, now)[-RESTARTS_KEPT:]))

    def _now_us(self) -> int:
        return int(self._clock.wall() * 1e6)

    def _write(self, book: Book, document: tuple[int, bytes] | None = None) -> None:
        """The document first: a crash in between leaves one that nobody knows."""
        if self.folder is None:
            raise StoreFull("this agent keeps no versions of its configuration", _UNKEPT)
        try:
            if document:
                self.folder.put(*document)
            self.folder.write(book)
        except OSError as error:
            raise StoreFull(
                f"{self.folder.path}: {error.strerror or error}: no version can be kept, so "
                "nothing was changed",
                f"check room and rights on the disk of {self.folder.path}",
            ) from error
        gone = len(book.versions) < len(self.book.versions) + bool(document)
        self.book = book
        if gone:
            self.folder.sweep(book)


_UNKEPT = "see that its folder can be written, and restart the agent"


def _bounded(book: Book) -> Book:
    """Without the oldest that nobody needs."""
    versions = list(book.versions)
    needed = {book.live, book.confirmed}
    needed |= set([s.number for s in book.steps if s.state == "confirmed"][-3:])
    for one in book.versions:
        if len(versions) > VERSIONS_MAX and one.number not in needed:
            versions.remove(one)
    return replace(book, versions=tuple(versions))
