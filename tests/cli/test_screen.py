"""What an agent says is shown, and does nothing to the terminal that shows it."""

import io

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from agent.cli.client import Refused
from agent.cli.screen import Console

ORDERS = "a\x1b]0;title\x07b\x1b[31mc\x9b2Jd\u202ee"


def test_what_is_no_character_is_shown_as_its_number() -> None:
    table = Table("name", box=None)
    table.add_row(escape(ORDERS))
    for shown in (ORDERS, Text(ORDERS), table, f"[red]{escape(ORDERS)}[/]"):
        out = io.StringIO()
        Console(file=out, width=200, markup=shown is not ORDERS, highlight=False).print(shown)
        lines = out.getvalue().splitlines()
        assert all(line.isprintable() for line in lines), lines
        assert r"\x1b]0;title" in lines[-1]
        assert shown is table or "\\x202ee" in lines[-1]  # a table has no room for what it grew


def test_colours_and_lines_stay() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard").print("[red]one[/]\ntwo 二")
    assert out.getvalue() == "\x1b[31mone\x1b[0m\ntwo 二\n"


def test_a_refusal_is_shown_so_too() -> None:
    said = Refused({"error": ORDERS, "hint": ORDERS})
    assert str(said).isprintable()
    assert said.hint.isprintable()
