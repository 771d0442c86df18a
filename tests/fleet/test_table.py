"""Tables for people: what stands in them, whatever comes from outside."""

import io

import pytest
from rich.console import Console

from fleet import view
from fleet.store.gaps import Difference, Report
from fleet.table import Table, show


def drawn(table: Table, width: int = 80, *, colours: bool = False) -> list[str]:
    file = io.StringIO()
    kind = {"force_terminal": True, "color_system": "standard"} if colours else {}
    show(Console(file=file, width=width, highlight=False, **kind), table)  # type: ignore[arg-type]
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    table = Table("device", ">records", "tags")
    table.add_row("press-7", "1,000", "hall press")
    table.add_row("\u68b0\u5668", "7", "")
    assert drawn(table) == [
        "device   records  tags",
        "press-7    1,000  hall press",
        "\u68b0\u5668           7",
    ]


def test_what_is_too_wide_is_folded_and_numbers_never_are() -> None:
    table = Table("device", ">records", "message")
    table.add_row("press-7", "123,456,789", "it smells of burnt rubber")
    assert drawn(table, 36) == [
        "device       records  message",
        "press-7  123,456,789  it smells of",
        "                      burnt rubber",
    ]
    table = Table("device", ">records")
    table.add_row("[b]x[/b]" + "y" * 40, "1")
    assert [len(line) for line in drawn(table, 20)][1:] == [20, 11, 11, 8]


def test_what_does_not_fit_though_it_is_folded_makes_the_lines_longer() -> None:
    table = Table("device", ">stored", ">unexplained")
    table.add_row("press-7", "123,456,789", "1,000")
    assert drawn(table, 20) == [
        "device       stored  unexplained",
        "press-  123,456,789        1,000",
        "7",
    ]


def test_the_ledgers_that_do_not_fit_are_shown_to_their_last_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    counts = {"produced": 12_345_678, "delivered": 12_000_001, "held": 5, "dropped": 7}
    one = Difference("press-7", "e" * 26, "results", **counts, told=12_345_678, stored=11_000_002)
    view.gaps(Report([], 0, [one]))
    _, head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["unexplained", "stored", "lost"]
    told = row.split()[-3:]
    assert told == [f"{each:,}" for each in (one.unexplained, one.stored, one.lost)]


def test_markup_is_a_colour_and_what_is_escaped_is_none() -> None:
    table = Table("device", "state")
    table.add_row(r"\[/red]", "[red]failed[/]")
    table.add_row("\U0001f600 :smile:", "good")
    assert drawn(table)[1:] == ["[/red]      failed", "\U0001f600 :smile:  good"]
    assert "\x1b[31mfailed\x1b[0m" in drawn(table, colours=True)[1]
