"""Text in Protocol Buffers' own form, as Triton's config.pbtxt has it.

Limits: 1 MiB, 64 messages deep. Whoever reads takes the fields he knows out of a `Section`; what is
left over at its `end` is an error, so that nothing that was written is passed over.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from agent.errors import ModelError

TEXT_BYTES_MAX = 1 << 20
DEPTH_MAX = 64
T = TypeVar("T")


class Word(str):
    """A bare word: an enum's name, true or false."""

    __slots__ = ()


Value = "Section | Word | str | int | float"

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n\f\v]+|\#[^\n]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>-?[ ]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?))
    |(?P<word>-?[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\([0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|.)", re.DOTALL)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_CLOSES = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str  # text, number, word, mark, end
    text: str
    line: int


class Section:
    """The fields of one message that nobody has taken yet."""

    def __init__(self, path: str, key: str, line: int) -> None:
        self.path, self.key, self.line = path, key, line
        self._fields: dict[str, list[tuple[int, object]]] = {}

    def add(self, name: str, line: int, value: object) -> None:
        """One more value of a field."""
        self._fields.setdefault(name, []).append((line, value))

    def refused(self, name: str, what: str, hint: str) -> ModelError:
        """The error about one field, to be raised before it is taken."""
        line = self._fields.get(name, [(self.line, None)])[0][0]
        return ModelError(f"{self.path}:{line}: {self._at(name)}: {what}", hint)

    def has(self, name: str) -> bool:
        """Whether the field is there, and not yet taken."""
        return name in self._fields

    def text(self, name: str, default: str = "") -> str:
        """A field in quotation marks."""
        return self._one(name, str, "a text in quotation marks", default)

    def word(self, name: str, default: str = "") -> str:
        """An enum's name."""
        return self._one(name, Word, "a name without quotation marks", Word(default))

    def number(self, name: str, default: int = 0) -> int:
        """A whole number."""
        return self._one(name, int, "a whole number", default)

    def flag(self, name: str) -> bool:
        """true or false; false where it is not there."""
        found = self._one(name, (Word, int), "true or false", Word("false"))
        if str(found) not in {"true", "True", "t", "1", "false", "False", "f", "0"}:
            raise ModelError(
                f"{self.path}:{self.line}: {self._at(name)}: expected true or false",
                "write one of them, without quotation marks",
            )
        return str(found)[0] in "tT1"

    def numbers(self, name: str) -> list[int]:
        """All values of a field of whole numbers."""
        return self._all(name, int, "whole numbers")

    def texts(self, name: str) -> list[str]:
        """All values of a field of texts."""
        return self._all(name, str, "texts in quotation marks")

    def sections(self, name: str) -> "list[Section]":
        """All messages of a field."""
        return self._all(name, Section, "messages in { }")

    def section(self, name: str) -> "Section | None":
        """A field's one message, if it is there."""
        found = self.sections(name)
        if len(found) > 1:
            raise ModelError(
                f"{self.path}:{found[1].line}: {self._at(name)}: written twice", "keep one of them"
            )
        return found[0] if found else None

    def drop(self, name: str) -> bool:
        """Take a field without looking at it; whether it was there."""
        return self._fields.pop(name, None) is not None

    def end(self) -> None:
        """Nothing is left over. Raises ModelError."""
        for name in self._fields:
            raise self.refused(name, "unknown field", "see Triton's model_config.proto; remove it")

    def _one(self, name: str, kind: type[T] | tuple[type, ...], what: str, default: T) -> T:
        if len(self._fields.get(name, [])) > 1:
            raise self.refused(name, "written twice", "keep one of them")
        found: list[T] = self._all(name, kind, what)
        return found[0] if found else default

    def _all(self, name: str, kind: type[T] | tuple[type, ...], what: str) -> list[T]:
        values = self._fields.get(name, [])
        for _, value in values:
            # A word is a text to Python, and would be one without its quotation marks here.
            if not isinstance(value, kind) or (kind is str and isinstance(value, Word)):
                raise self.refused(name, f"expected {what}", "see Triton's model_config.proto")
        self._fields.pop(name, None)
        return [value for _, value in values]  # type: ignore[misc]

    def _at(self, name: str) -> str:
        return ".".join(part for part in (self.key, name) if part)


def parse(content: bytes, path: str) -> Section:
    """The message in a text. Raises ModelError: file, line, what was expected."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: not a text: byte {error.start} is not UTF-8", "write it in UTF-8"
        ) from error
    found = Section(path, "", 1)
    _Parser(path, text).fields(found, "", 0)
    return found


class _Parser:
    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._tokens = _tokens(path, text)
        self._next = next(self._tokens)

    def fields(self, into: Section, closing: str, depth: int) -> None:
        """The fields up to the closing mark, which is taken too; up to the end for none."""
        if depth > DEPTH_MAX:
            raise self._wrong(f"more than {DEPTH_MAX} messages in one another")
        while not (self._next.kind == "mark" and self._next.text == closing):
            if self._next.kind == "end":
                if closing:
                    raise self._wrong(f"the text ends; expected {closing!r}")
                return
            name = self._take("word", "a field's name")
            self._field(into, name, depth)
            if self._next.kind == "mark" and self._next.text in ",;":
                self._advance()
        self._advance()

    def _field(self, into: Section, name: _Token, depth: int) -> None:
        colon = self._accept(":")
        key = f"{into.key}.{name.text}".lstrip(".")
        if self._accept("["):
            while not self._accept("]"):
                into.add(name.text, self._next.line, self._value(key, depth))
                if not self._accept(",") and self._next.text != "]":
                    raise self._wrong("expected ',' or ']'")
        elif not colon and self._next.text not in _CLOSES:
            raise self._wrong(f"expected ':' or '{{' after {name.text!r}")
        else:
            into.add(name.text, name.line, self._value(key, depth))

    def _value(self, key: str, depth: int) -> object:
        token = self._advance()
        if token.kind == "mark" and token.text in _CLOSES:
            found = Section(self._path, key, token.line)
            self.fields(found, _CLOSES[token.text], depth + 1)
            return found
        if token.kind == "text":
            parts = [_unescaped(token.text)]
            while self._next.kind == "text":  # neighbours are one text
                parts.append(_unescaped(self._advance().text))
            return "".join(parts)
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "word":
            return Word(token.text)
        raise self._wrong(f"expected a value, found {token.text or 'the end'!r}", token.line)

    def _accept(self, mark: str) -> bool:
        there = self._next.kind == "mark" and self._next.text == mark
        if there:
            self._advance()
        return there

    def _take(self, kind: str, what: str) -> _Token:
        if self._next.kind != kind:
            raise self._wrong(f"expected {what}, found {self._next.text or 'the end'!r}")
        return self._advance()

    def _advance(self) -> _Token:
        token = self._next
        self._next = next(self._tokens, token)
        return token

    def _wrong(self, what: str, line: int = 0) -> ModelError:
        return ModelError(f"{self._path}:{line or self._next.line}: {what}", "mend it there")


def _tokens(path: str, text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ModelError(
                f"{path}:{line}: {text[at : at + 20]!r} is not the text form of a protobuf message",
                "mend it there",
            )
        kind = str(found.lastgroup)
        if kind != "blank":
            yield _Token(kind, found[0], line)
        line += found[0].count("\n")
        at = found.end()
    yield _Token("end", "", line)


def _number(text: str) -> int | float:
    plain = text.replace(" ", "")
    digits = plain.lstrip("-")
    if digits[:2] in {"0x", "0X"}:
        return int(plain, 16)
    if digits.isdecimal() and len(digits) <= 20:
        return int(plain)
    return float(plain.rstrip("fF"))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_escaped, text[1:-1])


def _escaped(found: re.Match[str]) -> str:
    said = found[1]
    if said[0] in "01234567":
        return chr(int(said, 8))
    if said[0] in "xX" and len(said) > 1:
        return chr(int(said[1:], 16))
    return _SHORT.get(said, said)
