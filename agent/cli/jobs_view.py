"""What `holdfast jobs` shows people."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console
from agent.cli.units import size, span
from agent.words import counted

WIDE_COLUMNS = 100  # fewer have no room for all
COLOURS = {"done": "green", "failed": "red", "cancelled": "dim", "running": "yellow"}


def jobs(document: dict[str, Any]) -> None:
    """`ls`."""
    console = Console(highlight=False)
    counts = document["counts"]
    now = ", ".join(f"{n:,} {state}" for state, n in counts["now"].items() if n)
    console.print(f"{now or 'no jobs'}, {size(counts['bytes'])}")
    if not document["jobs"]:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    wide = console.width >= WIDE_COLUMNS
    columns = ("class", "state", ">rows") if wide else ("state", ">done")
    for column in ("id", "model", *columns, ">age", ">left"):
        number = column.startswith(">")
        justify: Any = "right" if number else "left"
        table.add_column(
            column.lstrip(">"), justify=justify, no_wrap=number or column == "id", overflow="fold"
        )
    for row in document["jobs"]:
        done = f"{row['rows_done']:,}/{row['rows']:,}" if wide else f"{row['progress']:.0%}"
        table.add_row(
            *(escape(row["id"]), escape(row["model"]), *([row["class"]] if wide else [])),
            *(_state(row), done, span(row["age_s"]), _left(row)),
        )
    console.print(table)


def job(row: dict[str, Any]) -> None:
    """`show`, and what `cancel` made of it."""
    console = Console(highlight=False)
    console.print(f"[bold]{escape(row['id'])}[/]  {escape(row['model'])}, {row['class']}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    done = f"{row['rows_done']:,} of {counted(row['rows'], 'row')} ({row['progress']:.0%})"
    table.add_row("state", _state(row))
    table.add_row("done", f"{done}, {size(row['bytes'])}")
    table.add_row("age", f"{span(row['age_s'])}{_times(row)}")
    if row["ended_us"] is None:
        table.add_row("left", _left(row))
    if row["attempts"] > 1:
        table.add_row("attempts", f"{row['attempts']} of this chunk")
    for what, text in (("held up", row["held_up"]), ("failure", row["failure"])):
        if text:
            table.add_row(what, escape(text))
    for one in row["answered"]:
        table.add_row("by", escape(f"{one['model']} on {one['ep']}"))
    console.print(table)


def progress(row: dict[str, Any]) -> str:
    """A line of `watch`."""
    done = f"{row['rows_done']:,} of {counted(row['rows'], 'row')} ({row['progress']:.0%})"
    left = "" if row["ended_us"] is not None else f", left {_left(row)}"
    why = row["failure"] or row["held_up"]
    return f"{row['state']}  {done}{left}{why and f': {why}'}"


def _state(row: dict[str, Any]) -> str:
    state = row["state"]
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else str(state)


def _left(row: dict[str, Any]) -> str:
    if row["ended_us"] is not None:
        return "-"
    return "unknown" if row["eta_s"] is None else span(row["eta_s"])


def _times(row: dict[str, Any]) -> str:
    said = ""
    if row["started_age_s"] is not None:
        said += f", begun {span(row['started_age_s'])} ago"
    if row["ended_age_s"] is not None:
        said += f", ended {span(row['ended_age_s'])} ago"
    return said
