"""Which version of the configuration a start is on: judged before anything of the agent begins.

What came last counts: a file of --config that is not as it was seen last is a new version, and live
from now on, whatever orders had chosen before it; else the version that the book has as live.

A version on trial has STARTS_MAX starts. What ends the agent during its trial takes it back at
once; what ends it without a word (a kill, a hang, a power cut) counts as a start that came to
nothing, and the start after the last of them takes it back. A start that cannot be counted, for the
book cannot be written, is on what was confirmed.

Where the agent is a service, so that nobody sees its end, a file that cannot be used does not end
it: it says so, and is on the version that is live; and a file that was changed is on trial, until
the agent has begun on it. By hand, whoever starts it is told, and mends it.
"""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from agent.clock import Clock
from agent.config import Config
from agent.errors import ConfigError, HoldfastError, StoreError, StoreFull
from agent.health.names import Name
from agent.versions.file import File
from agent.versions.folder import Folder
from agent.versions.forms import Book, Trial
from agent.versions.kept import Kept

STARTS_MAX = 2
FOLDER = "config"


class Note(NamedTuple):
    """A condition that holds from the start on."""

    name: Name
    cause: str
    remedy: str


class Anew(HoldfastError):
    """The version that this start was on is taken back: the agent is to begin anew."""

    exit_code = 80


class Begun:
    """What this start is on: `number` is the version's, 0: the file of --config itself.

    Used with `with` around all that the agent does: what ends that during a trial ends the trial.
    """

    def __init__(
        self, settings: Config, number: int, kept: Kept, notes: list[Note], *, service: bool = False
    ) -> None:
        self.settings = settings
        self.number = number
        self.kept = kept
        self.notes = notes
        self.service = service

    @property
    def on_trial(self) -> Trial | None:
        """The trial of the version that it is on."""
        return self.kept.book.trial if self.number == self.kept.book.live else None

    def put_down(self) -> None:
        """The agent has ended in order, as it was told to: this start counts for nothing."""
        if self.on_trial:
            with suppress(StoreFull):  # then it counts
                self.kept.put_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises Anew. A store that fails is no fault of a configuration's."""
        if not isinstance(error, Exception) or isinstance(error, StoreError) or not self.on_trial:
            return
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        what = (
            str(error) if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
        )
        try:
            back, _ = self.kept.take_back(f"the agent ended on it: {what}")
        except HoldfastError:  # then its starts are counted, or it is not tried again
            return
        raise Anew(
            f"version {self.number} of the configuration is taken back: {what}",
            f"nothing: the agent begins anew on version {back}",
        ) from error


def begin(file: Path, state: Path | None, clock: Clock) -> Begun:
    """What to begin on. Raises ConfigError: there is nothing that could be used.

    `state` is the folder of the service; None: somebody started it by hand.
    """
    found = File(file)
    if state is None:
        found.settings()  # whoever stands there is told before anything is made
    folder = Folder((state or found.store_folder()) / FOLDER)
    try:
        mine, book = folder.take(), folder.read()
    except OSError as error:
        why = f"{folder.path}: {error.strerror or error}: no version can be kept"
        unkept = Kept(file, None, Book(), clock)
        return Begun(found.settings(), 0, unkept, [_unwritten(why, folder)])
    if not mine:  # a second agent: the store says so, and ends it
        return Begun(found.settings(), 0, Kept(file, None, book, clock), [])
    kept = Kept(file, folder, book, clock)
    try:
        return _Choice(found, kept, folder, service=state is not None).made()
    except HoldfastError:
        folder.leave()
        raise


class _Choice:
    """One start's."""

    def __init__(self, file: File, kept: Kept, folder: Folder, *, service: bool) -> None:
        self._file = file
        self._kept = kept
        self._folder = folder
        self._service = service
        self._notes: list[Note] = []

    def made(self) -> Begun:
        """Raises ConfigError."""
        try:
            self._take_file()
            self._count()
        except StoreFull as error:
            self._notes.append(_unwritten(str(error), self._folder))
            return self._uncounted()
        self._folder.sweep(self._kept.book)
        return self._on(self._kept.book.live)

    def _take_file(self) -> None:
        """The file as a new version, where it is one. Raises ConfigError, StoreFull."""
        try:
            self._file.adopt(self._kept, service=self._service)
        except ConfigError as error:
            if not self._kept.book.live:
                raise
            self._tell_unusable(error)

    def _count(self) -> None:
        """A start of a version on trial, or its end. Raises StoreFull, HoldfastError."""
        trial = self._kept.book.trial
        if trial and trial.starts >= STARTS_MAX:
            why = f"the agent began on it {trial.starts} times, and ended before it was confirmed"
            try:
                self._kept.take_back(why)
            except StoreFull:
                raise
            except HoldfastError as error:
                self._kept.confirm(f"there is none to go back to: {error}")
        elif trial:
            self._kept.started()

    def _on(self, number: int) -> Begun:
        """This version, or what comes in its place. Raises ConfigError."""
        try:
            return self._begun(number, self._settings(number))
        except HoldfastError as error:
            if self._kept.book.trial:
                with suppress(StoreFull):
                    return self._begun(*self._kept.take_back(str(error)))
            self._tell_damaged(number, error)
        return self._instead(number)

    def _uncounted(self) -> Begun:
        """Nothing can be written: the file, where it is new, else what was confirmed."""
        book = self._kept.book
        if self._file.digest != book.file_digest or not book.live:
            with suppress(ConfigError):
                return self._begun(0, self._file.settings())
        return self._instead(book.confirmed)

    def _instead(self, number: int) -> Begun:
        with suppress(HoldfastError):
            return self._begun(*self._kept.usable(number))
        return self._begun(0, self._file.settings())

    def _settings(self, number: int) -> Config:
        if self._kept.book.version(number).digest == self._file.digest:
            return self._file.settings()
        return self._kept.settings(number)

    def _begun(self, number: int, settings: Config) -> Begun:
        return Begun(settings, number, self._kept, self._notes, service=self._service)

    def _tell_unusable(self, error: ConfigError) -> None:
        live = self._kept.book.live
        cause = f"{error}; version {live} serves instead"
        self._notes.append(Note("config_file_unusable", cause, error.hint or "mend it"))

    def _tell_damaged(self, number: int, error: HoldfastError) -> None:
        cause = f"version {number} should be in force, and cannot be used: {error}"
        self._notes.append(Note("config_file_unusable", cause, "holdfast config versions"))


def _unwritten(why: str, folder: Folder) -> Note:
    remedy = f"check room and rights on the disk of {folder.path}, then restart the agent"
    return Note("config_unwritten", why, remedy)
