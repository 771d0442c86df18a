"""The conditions of the configuration."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.errors import HoldfastError
from agent.health.conditions import Conditions, Severity
from agent.health.names import Name
from agent.versions.forms import Book
from agent.versions.start import Note

SUBJECT = "configuration"


class Notices:
    """Holds and clears them."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    def began(self, notes: Iterable[Note]) -> None:
        """What the start has met."""
        for note in notes:
            self._hold(note.name, note.cause, note.remedy, "warning")

    def file_is_usable(self) -> None:
        """The file of --config is a version now."""
        self._conditions.clear("config_file_unusable", SUBJECT)

    def unwritten(self, error: HoldfastError) -> None:
        """What happened could not be written down."""
        self._hold("config_unwritten", str(error), error.hint, "warning")

    def not_applied(self, error: HoldfastError) -> None:
        """What the file of --config says now could not be had."""
        remedy = error.hint or "mend it, then: holdfast domains apply"
        self._hold("domains_not_applied", str(error), remedy, "warning")

    def written(self) -> None:
        """It could."""
        self._conditions.clear("config_unwritten", SUBJECT)

    def tell(self, book: Book, waits: Mapping[str, str], file: Path) -> None:
        """As the book has it now; `waits` are the sections that wait for a restart, with why."""
        trial, back = book.trial, book.taken_back
        self._hold(
            "config_on_trial",
            f"version {book.live} is on trial; version {trial.former} comes back unless it is "
            f"confirmed ({trial.confirm}, {trial.confirm_s:g} s)"
            if trial
            else None,
            "holdfast config confirm, or holdfast config rollback; or wait",
        )
        self._hold(
            "config_taken_back",
            f"version {back.number} was taken back: {back.why}" if back else None,
            f"holdfast config show {back.number if back else ''}; mend it and apply it again, or "
            "leave it: holdfast config confirm",
            "warning",
        )
        self._hold(
            "config_overrides_file",
            f"version {book.live} was ordered, and is in force in place of what {file} says"
            if self._differs(book)
            else None,
            f"nothing has to be done; what is written into {file} next counts from then on",
        )
        self._hold(
            "config_restart_due",
            ", ".join(f"{name}: {why}" for name, why in waits.items()),
            "restart the agent: until then these sections are as they were",
        )

    def _differs(self, book: Book) -> bool:
        live = next((one for one in book.versions if one.number == book.live), None)
        return live is not None and live.digest != book.file_digest

    def _hold(
        self, name: Name, cause: str | None, remedy: str, severity: Severity = "note"
    ) -> None:
        if cause:
            self._conditions.hold(name, SUBJECT, severity, cause, remedy)
        else:
            self._conditions.clear(name, SUBJECT)
