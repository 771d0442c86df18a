"""Numbers, and what others say, in sentences."""

QUOTED_CHARS_MAX = 200


def counted(number: int, one: str, many: str = "") -> str:
    """`1 record`, `1,234 records`; `many` where that is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Text from outside as text that can be stored, sent and printed on one line."""
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def quoted(text: str, chars_max: int = QUOTED_CHARS_MAX) -> str:
    """As `printable`, and no longer than that: what the other side says may be of any length."""
    said = printable(text[: chars_max + 1])
    return said if len(said) <= chars_max else f"{said[: chars_max - 3]}..."
