"""What is to be published next, and the terms on which all is: two small files of our own.

Format  : draft.json: targets to add (path, digest, length, what is signed with them) and to remove.
          terms.json: for how many days the signature of each role holds.
Recovery: replaced as a whole. Content that was added and never published lies in `targets` until
          the next publish removes what nothing names.
"""

from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent import whole_file
from agent.errors import ConfigError
from agent.protocol.content import About

T = TypeVar("T", bound=Struct)


class Added(Struct, frozen=True):
    """A target as it will be signed."""

    sha256: str
    size_bytes: int
    about: About


class Draft(Struct):
    """What differs from what is published."""

    add: dict[str, Added] = {}
    remove: list[str] = []

    @property
    def empty(self) -> bool:
        """Whether nothing does."""
        return not self.add and not self.remove


class Terms(Struct, frozen=True):
    """Days from signing to expiry, for each role."""

    root: int = 730
    targets: int = 365
    snapshot: int = 90
    timestamp: int = 30


def read(path: Path, kind: type[T]) -> T:
    """The file's content, or none at all. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", "mend it, or remove it") from error


def write(path: Path, content: Struct) -> None:
    """Keep it."""
    whole_file.replace(path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")
