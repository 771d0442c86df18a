"""A tar as a stranger made it: the plain form, read in one pass, each header judged before its
content is.

Limits  : a header is one block; a name has NAME_BYTES_MAX. Whoever reads bounds the contents: no
          byte of one is read before its header was given out. In zstd, the window has
          WINDOW_BYTES_MAX.
Format  : ustar (POSIX.1-1988), as `tar --format=ustar` writes it, or GNU's where that is the same;
          plain, or in one or more frames of zstd. Files and folders alone: a link, a device, a
          hole, or a header that speaks of another one (pax, GNU's long names) is refused. It ends
          with two blocks of zeros, and nothing but zeros comes after them.
Recovery: none: what is not whole is refused.
"""

import hashlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol, cast

import zstandard

from agent.errors import ModelError

BLOCK_BYTES = 512
PIECE_BYTES = 1 << 20
NAME_BYTES_MAX = 100 + 1 + 155  # name, and what the prefix puts before it
WINDOW_BYTES_MAX = 32 << 20  # of `zstd -19`: 8 MiB
END_BYTES_MAX = 1 << 20  # of zeros behind the end: GNU fills up to a record of 10 KiB
ZSTD = b"\x28\xb5\x2f\xfd"
FORM = "make it with: tar --format=ustar -cf FILE model.yaml ... (docs/models.md)"
_KINDS = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a file with holes",
    b"x": "a pax header",
    b"g": "a pax header",
    b"L": "a long name of GNU's",
    b"K": "a long link of GNU's",
}


class Stream(Protocol):
    """What is read from."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102


class Entry(NamedTuple):
    """A file, or a folder, whose content is empty."""

    name: str
    size_bytes: int
    folder: bool


class Source:
    """An archive's file: it counts and digests what is read, and stops where it is told to."""

    def __init__(self, file: BufferedReader, halted: Callable[[], bool]) -> None:
        """Raises OSError."""
        self.zstd = file.peek(len(ZSTD)).startswith(ZSTD)
        self.sha256 = hashlib.sha256()
        self._file = file
        self._halted = halted

    def read(self, size: int = -1, /) -> bytes:
        """Raises OSError; Halted when nobody waits for it any more."""
        if self._halted():
            raise Halted("nobody waits for it any more")
        data = self._file.read(size)
        self.sha256.update(data)
        return data


class Halted(ModelError):
    """It was given up."""


class Tar:
    """The entries of an archive, in order. `path` is for messages."""

    def __init__(self, source: Source, path: Path) -> None:
        self._path = path
        self._stream: Stream = source
        if source.zstd:
            way = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
            self._stream = way.stream_reader(cast(BinaryIO, source), read_across_frames=True)

    def entries(self) -> Iterator[Entry]:
        """Each; its content is to be read before the next. Raises ModelError, OSError."""
        while any(block := self._exactly(BLOCK_BYTES, "a header")):
            yield self._entry(block)
        self._ended()

    def content(self, entry: Entry) -> Iterator[bytes]:
        """Of the entry that came last, in pieces. Raises ModelError, OSError."""
        left = entry.size_bytes
        while left:
            piece = self._some(min(PIECE_BYTES, left))
            if not piece:
                raise self._wrong(f"ends within {entry.name}", "copy or fetch it again")
            left -= len(piece)
            yield piece
        self._exactly(-entry.size_bytes % BLOCK_BYTES, f"what fills up {entry.name}")

    def _entry(self, block: bytes) -> Entry:
        if _sum(block) != self._number(block[148:156], "checksum"):
            raise self._wrong("has a header whose checksum is wrong, or is no tar", FORM)
        magic, kind = block[257:265], block[156:157]
        if magic not in (b"ustar\x0000", b"ustar  \x00"):
            raise self._wrong("is a tar of another form", FORM)
        name = block[:100].split(b"\0")[0]
        if magic == b"ustar\x0000" and (prefix := block[345:500].split(b"\0")[0]):
            name = prefix + b"/" + name
        if kind not in (b"0", b"\0", b"5"):
            said = _KINDS.get(kind, f"an entry of the kind {kind!r}")
            raise self._wrong(
                f"holds {said}, {name[:80]!r}: expected files and folders alone", FORM
            )
        size, folder = self._number(block[124:136], "size"), kind == b"5"
        if folder and size:
            raise self._wrong(f"holds a folder with content, {name[:80]!r}", FORM)
        return Entry(self._name(name, folder=folder), size, folder)

    def _name(self, raw: bytes, *, folder: bool) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(f"has a name that is no UTF-8, {raw[:80]!r}", FORM) from error
        name = name.removesuffix("/") if folder else name
        pure = PurePosixPath(name)
        if not name.isprintable() or str(pure) != name or pure.is_absolute() or ".." in pure.parts:
            said = f"{name[:80]!r} is no plain name of a file below the version's folder"
            raise self._wrong(said, "name it without / at its head, ./ and ..")
        return name

    def _number(self, field: bytes, what: str) -> int:
        if field[0] == 0x80:  # GNU's way for files from 8 GiB on
            return int.from_bytes(field[1:])
        text = field.strip(b"\0 ")
        if not text or text.strip(b"01234567"):
            raise self._wrong(f"has a header whose {what} is no number", FORM)
        return int(text, 8)

    def _ended(self) -> None:
        """One block of zeros was read: another one, and no more than zeros."""
        if any(self._exactly(BLOCK_BYTES, "its end")):
            raise self._wrong("has one block of zeros, expected two at its end", FORM)
        read = 0
        while piece := self._some(PIECE_BYTES):
            read += len(piece)
            if any(piece) or read > END_BYTES_MAX:
                raise self._wrong("goes on behind its end", FORM)

    def _exactly(self, size: int, what: str) -> bytes:
        found = b""
        while len(found) < size:
            piece = self._some(size - len(found))
            if not piece:
                raise self._wrong(f"ends within {what}", "copy or fetch it again")
            found += piece
        return found

    def _some(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except zstandard.ZstdError as error:
            raise self._wrong(f"is no whole zstd: {error}", "copy or fetch it again") from error

    def _wrong(self, what: str, hint: str) -> ModelError:
        return ModelError(f"{self._path}: {what}", hint)


def _sum(block: bytes) -> int:
    """Of all bytes of a header, its own sum taken for blanks."""
    return sum(block[:148]) + 8 * 0x20 + sum(block[156:])
