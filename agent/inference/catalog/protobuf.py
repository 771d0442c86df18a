"""The wire form of Protocol Buffers, read from a file piece by piece.

Limits  : files up to 2 GiB, which is the most the form allows; FIELDS_MAX fields in all, so that a
          hostile file costs seconds at most. Memory: one window of the file, whatever it holds.
Format  : a message is fields; a field is a number with a kind, then a varint, 4 or 8 bytes, or
          a length and so many bytes. What is not asked for is passed over, not read.

It reads and does not map the file: a mapped file that somebody shortens kills the process.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from agent.errors import ModelError

FILE_BYTES_MAX = (1 << 31) - 1
FIELDS_MAX = 5_000_000
WINDOW_BYTES = 64 * 1024
VARINT_BYTES_MAX = 10
LABEL_BYTES = 120
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field: a varint's value, or where its bytes lie in the file."""

    number: int
    kind: int
    start: int  # of its bytes; a varint's value
    end: int


class Reader:
    """A file of one message; nothing of it is believed."""

    def __init__(self, path: Path, file: BinaryIO, fields_max: int = FIELDS_MAX) -> None:
        self.path = path
        self._fd = file.fileno()
        self.size_bytes = os.fstat(self._fd).st_size
        self._fields_left = fields_max
        self._window, self._base = b"", 0
        if not 0 < self.size_bytes <= FILE_BYTES_MAX:
            raise ModelError(
                f"{path}: has {self.size_bytes:,} bytes, expected 1 to {FILE_BYTES_MAX:,}",
                "copy it again; with weights of 2 GiB and more, export it with external data",
            )

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies there. Raises ModelError."""
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self.refused(at, "has more fields than any model needs")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if number == 0 or kind not in {VARINT, FIXED64, LENGTH, FIXED32}:
                raise self.refused(at, "is not the form of an ONNX file")
            if kind == VARINT:
                value, at = self._varint(at, end)
                yield Field(number, kind, value, at)
                continue
            length = FIXED_BYTES.get(kind)
            if length is None:
                length, at = self._varint(at, end)
            if at + length > end:
                raise self._too_long(number, at, length, end)
            yield Field(number, kind, at, at + length)
            at += length

    def text(self, field: Field, characters_max: int) -> str:
        """A field's bytes as text. Raises ModelError for one that is too long, or no text."""
        self.expect(field, LENGTH)
        if field.end - field.start > characters_max:
            raise self.refused(field.start, f"a name has more than {characters_max} bytes")
        try:
            return self._bytes(field.start, field.end).decode()
        except UnicodeDecodeError as error:
            raise self.refused(field.start, "a name is not UTF-8") from error

    def label(self, field: Field) -> str:
        """The head of a text that is for people only."""
        self.expect(field, LENGTH)
        return self._bytes(field.start, min(field.end, field.start + LABEL_BYTES)).decode(
            errors="replace"
        )

    def expect(self, field: Field, kind: int) -> Field:
        """The field, if it is of the kind that it must have."""
        if field.kind != kind:
            raise self.refused(field.end, f"field {field.number} is of another kind")
        return field

    def refused(self, at: int, what: str) -> ModelError:
        """The error about a place in the file."""
        return ModelError(
            f"{self.path}: not an ONNX model, or a damaged one: byte {at:,}: {what}",
            "copy or export the model again",
        )

    def _too_long(self, number: int, at: int, length: int, end: int) -> ModelError:
        if end < self.size_bytes:
            return self.refused(at, f"field {number} is longer than what it lies in")
        return ModelError(
            f"{self.path}: cut off, or not an ONNX model: field {number} at byte {at:,} should "
            f"have {length:,} bytes, the file ends after {end - at:,}",
            "copy it again, to its end",
        )

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        stop = min(end, at + VARINT_BYTES_MAX)
        offset = at - self._base
        if offset < 0 or offset + VARINT_BYTES_MAX > len(self._window):
            self._move(at)
            offset = 0
        window = self._window
        for byte in window[offset : offset + stop - at]:
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
            shift += 7
        if at >= self.size_bytes:
            raise ModelError(
                f"{self.path}: cut off: it ends within a number", "copy it again, to its end"
            )
        raise self.refused(at, "a number does not end")

    def _move(self, at: int) -> None:
        self._window, self._base = self._pread(at, WINDOW_BYTES), at

    def _bytes(self, start: int, end: int) -> bytes:
        offset = start - self._base
        if offset < 0 or end - self._base > len(self._window):
            self._move(start)
            offset = 0
        return self._window[offset : offset + end - start]

    def _pread(self, at: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, at)
        except OSError as error:
            raise ModelError(
                f"{self.path}: cannot be read: {error.strerror or error}", "check the disk"
            ) from error


def signed(value: int) -> int:
    """A varint as the 64-bit number with a sign that most fields mean."""
    return value - (1 << 64) if value >> 63 else value
