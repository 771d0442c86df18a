"""Numbers in sentences."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 record`, `1,234 records`; `many` where that is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
