"""Small files of the kernel, as they are: what is not there, or cannot be read, is nothing."""

from contextlib import suppress
from pathlib import Path


def text(path: Path) -> str:
    """What stands in it, without white space around it; "" where nobody may know."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return ""


def number(path: Path) -> int | None:
    """The number that stands in it; None where none does."""
    with suppress(ValueError):
        return int(text(path))
    return None
