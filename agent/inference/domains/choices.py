"""Which version of each model an operator chose last, over restarts.

Limits  : one small file, a line's worth for each model that was ever chosen.
Format  : JSON, {"MODEL": {"version": 2, "previous": 1, "unloaded": false}}, replaced as a whole and
          fsynced: a crash leaves what was chosen before, or what was chosen now.
Recovery: without the file, or with one that cannot be read (it is said), the newest version of each
          model serves.
"""

import logging
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import plain_file, whole_file

log = logging.getLogger("domain")


class Choice(Struct, frozen=True):
    """A model's version, and the one before it; `unloaded`: neither is to serve for now."""

    version: int
    previous: int | None = None
    unloaded: bool = False


class Choices:
    """The choices, as they are on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = self._read()

    def of(self, model: str) -> Choice | None:
        """What was chosen; None: nothing yet."""
        return self._held.get(model)

    def choose(self, model: str, version: int, former: int | None) -> None:
        """From now on this version; `former` served until now. Raises OSError."""
        held = self._held.get(model)
        if former in (None, version) and held:
            former = held.version if held.version != version else held.previous
        self._note(model, Choice(version, None if former == version else former))

    def put_aside(self, model: str, version: int) -> None:
        """From now on none, until one is chosen; `version` served until now. Raises OSError."""
        held = self._held.get(model)
        self._note(model, Choice(version, held.previous if held else None, unloaded=True))

    def forget(self, model: str, version: int) -> None:
        """Go back to this version no more. Raises OSError."""
        held = self._held.get(model)
        if held and held.previous == version:
            self._note(model, Choice(held.version, None, held.unloaded))

    def _note(self, model: str, choice: Choice) -> None:
        if self._held.get(model) == choice:
            return
        noted = {**self._held, model: choice}
        self._write(noted)
        self._held = noted

    def _read(self) -> dict[str, Choice]:
        try:
            with plain_file.opened(self._path) as file:
                return msgspec.json.decode(file.read(), type=dict[str, Choice])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("%s: %s; the newest version of each model serves", self._path, error)
            return {}

    def _write(self, chosen: dict[str, Choice]) -> None:
        content = msgspec.json.format(msgspec.json.encode(chosen)) + b"\n"
        whole_file.replace(self._path, content)
