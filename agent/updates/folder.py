"""A repository in a folder: on a stick, on a share, or on this disk."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO, Self

from agent import plain_file
from agent.protocol.content import METADATA
from agent.threads import apart
from agent.updates.source import Absent, Away
from agent.words import quoted

PIECE_BYTES = 1 << 20


class FolderSource:
    """Read in threads of its own: a stick that is being pulled out holds nobody up."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name = str(root)

    async def __aenter__(self) -> Self:
        try:
            there = await apart((self._root / METADATA).is_dir)
        except (OSError, ValueError) as error:
            raise Away(
                f"{quoted(str(self._root))}: {error}", "name the folder of a repository"
            ) from error
        if not there:
            raise Away(
                f"{self._root}: holds no repository (no folder {METADATA})",
                "mount the stick; copy the repository of `holdfast-fleet updates` onto it as it is",
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        """No file is open between two reads."""

    async def pieces(self, path: str, start: int, span_bytes: int) -> AsyncGenerator[bytes, None]:
        """As Source has it."""
        where = self._root / path
        try:
            file = await apart(lambda: _at(where, start))
        except FileNotFoundError as error:
            raise Absent(f"{where}: is not there") from error
        except OSError as error:
            raise Away(f"{where}: {error.strerror or error}", "look at the stick") from error
        with file:
            while span_bytes > 0:
                try:
                    data = await apart(lambda: file.read(PIECE_BYTES))
                except OSError as error:
                    raise Away(f"{where}: {error.strerror}", "look at the stick") from error
                if not data:
                    return
                span_bytes -= len(data)
                yield data


def _at(path: Path, start: int) -> BinaryIO:
    file = plain_file.opened(path)
    file.seek(start)
    return file
