"""Tables for people. rich's own takes some milliseconds a row, and a fleet has ten thousand.

What does not fit, though all columns that may be folded are, makes its lines longer than the
terminal is wide: nothing is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

GAP = 2
WIDTH_MIN = 4  # of a column that is folded; and never narrower than its name
_HEAD = Style(bold=True)


class Table:
    """Columns of text; those whose name begins with `>` hold numbers and are never folded."""

    def __init__(self, *columns: str) -> None:
        self._right = [one.startswith(">") for one in columns]
        self._folds = [not one.startswith(">") and one != "epoch" for one in columns]
        self._names = [one.removeprefix(">") for one in columns]
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """A cell for each column, in rich's markup."""
        self._rows.append(cells)

    def __bool__(self) -> bool:
        """Whether it has a row."""
        return bool(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """As rich asks for it."""
        widths = self._widths(options.max_width)
        yield from self._line([Segment(one, _HEAD) for one in self._names], widths)
        for row in self._rows:
            for line in _folded(console, row, widths):
                yield from self._line(line, widths)

    def _widths(self, most: int) -> list[int]:
        """Of each column; while all is too wide, the widest that may be folded gives way."""
        columns = list(zip(self._names, *self._rows, strict=True))
        widths = [max(map(_width, column)) for column in columns]
        least = [max(WIDTH_MIN, _width(name)) for name in self._names]
        surplus = sum(widths) + GAP * (len(widths) - 1) - most
        while surplus > 0:
            could = [at for at, folds in enumerate(self._folds) if folds and widths[at] > least[at]]
            if not could:
                break
            at = max(could, key=widths.__getitem__)
            widths[at], surplus = widths[at] - 1, surplus - 1
        return widths

    def _line(self, cells: Sequence[Segment], widths: Sequence[int]) -> Iterator[Segment]:
        plain = ""  # what has no style goes as one
        for cell, width, right in zip(cells, widths, self._right, strict=True):
            rest = " " * (width - cell_len(cell.text))
            if cell.style is None:
                plain += f"{rest}{cell.text}" if right else f"{cell.text}{rest}"
            else:
                yield from (Segment(plain + rest * right), cell)
                plain = "" if right else rest
            plain += " " * GAP
        yield Segment(f"{plain.rstrip()}\n")


def show(console: Console, rows: Table, none: str = "") -> None:
    """The table, whole; one without a row as `none`, where that is said."""
    console.print(rows if rows or not none else none, crop=False)


def _folded(
    console: Console, row: Sequence[str], widths: Sequence[int]
) -> Iterable[Sequence[Segment]]:
    """The lines of a row."""
    cells = [_lines(console, *pair) for pair in zip(row, widths, strict=True)]
    blank = Segment("")
    return [
        [lines[at] if at < len(lines) else blank for lines in cells]
        for at in range(max(map(len, cells)))
    ]


def _lines(console: Console, cell: str, width: int) -> list[Segment]:
    if "[" not in cell and cell_len(cell) <= width:
        return [Segment(cell)]
    text = _text(cell)
    lines = [text] if text.cell_len <= width else text.wrap(console, width, overflow="fold")
    found = []
    for line in lines:
        style = console.get_style(line.spans[0].style) if line.spans else None
        found.append(Segment(line.plain.rstrip(), style))
    return found or [Segment("")]


def _width(cell: str) -> int:
    """Without its markup."""
    return _text(cell).cell_len if "[" in cell else cell_len(cell)


@lru_cache(1000)  # a few states, again and again
def _text(cell: str) -> Text:
    return Text.from_markup(cell, emoji=False)
