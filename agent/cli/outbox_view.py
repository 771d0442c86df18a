"""What `holdfast outbox` shows people."""

import json
from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console
from agent.cli.units import size, span
from agent.words import counted

WIDE = 110  # columns from which on there is room for all counters
NAME_COLUMNS = 26  # of a stream's name, where there is less: an epoch fits
STATES = {"dead": "red", "retrying": "yellow", "not to be sent": "dim", "empty": "dim"}
OFFLINE = "[yellow]NO AGENT RUNS.[/] Read from the store itself."


def _table(*columns: str, stream_columns: int | None = None) -> Table:
    """Columns of text; those whose name begins with `>` hold numbers and are never folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column.startswith(">")
        table.add_column(
            column.lstrip(">"),
            justify="right" if number else "left",
            no_wrap=number or column == "type",
            overflow="fold",
            min_width=14 if column == "state" else None,
            width=stream_columns if column == "stream" else None,
        )
    return table


def streams(document: dict[str, Any]) -> None:
    """`ls`."""
    console = Console(highlight=False)
    if document["offline"]:
        console.print(OFFLINE)
    rows = document["streams"]
    held, held_bytes = sum(r["held"] for r in rows), sum(r["bytes"] for r in rows)
    console.print(
        f"{counted(held, 'record')} held, {size(held_bytes)}  [dim]epoch {document['epoch']}[/]"
    )
    wide = console.width >= WIDE
    more = (">produced", ">delivered") if wide else ()
    table = _table(
        "stream",
        *more,
        ">held",
        ">size",
        ">oldest",
        "state",
        "dropped",
        stream_columns=_room(rows, document["epoch"], wide),
    )
    for row in rows:
        counters = (f"{row['produced']:,}", f"{row['delivered']:,}") if wide else ()
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in row["dropped"].items())
        age_s = row["oldest_age_s"]
        table.add_row(
            _named(row, document["epoch"]),
            *counters,
            f"{row['held']:,}",
            size(row["bytes"]) if row["bytes"] else "-",
            "-" if age_s is None else span(age_s),
            *(_stream_state(row), dropped or "0"),
        )
    console.print(table)


def _room(rows: list[dict[str, Any]], own: str, wide: bool) -> int | None:
    """Columns for the streams' names: what they take, within bounds."""
    longest = max((len(row["name"]) for row in rows), default=0)
    if any(row["epoch"] != own for row in rows):
        longest = max(longest, NAME_COLUMNS)
    return max(NAME_COLUMNS, min(longest, 40)) if wide else max(6, min(longest, NAME_COLUMNS))


def _named(row: dict[str, Any], own: str) -> str:
    name = escape(row["name"])
    return name if row["epoch"] == own else f"{name}\n[dim]--epoch {row['epoch']}[/]"


def _stream_state(row: dict[str, Any]) -> str:
    state = _coloured(row["state"])
    if row["leased"]:
        parts = row["leased_spans"]
        state = f"leased to #{row['leased']}" if parts == 1 else f"leased in {parts} parts"
    return f"{state}, [red]{row['dead']:,} dead[/]" if row["dead"] else state


def _coloured(state: str) -> str:
    colour = STATES.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def page(document: dict[str, Any], *, dead: bool) -> None:
    """`show STREAM`."""
    console = Console(highlight=False)
    records, dropped = document["records"], document["dropped"]
    if not records:
        console.print("no dead letters" if dead else "no records held")
    else:
        table = _table(">seq", ">age", "type", ">body", ">blob", "state")
        for row in records:
            state = _coloured(row["state"])
            cause = f": {escape(row['cause'])}" if row["cause"] else ""
            blob = size(row["blob_bytes"]) if row["blob_bytes"] else "-"
            table.add_row(
                *(f"#{row['seq']}", span(row["age_s"]), escape(row["type"])),
                *(f"{row['body_bytes']} B", blob, f"{state}{cause}"),
            )
        console.print(table)
    if dropped:
        console.print("dropped, and the far side does not know it yet:")
        for first, last, reason in dropped:
            which = f"#{first}" if first == last else f"#{first} to #{last}"
            console.print(f"  {which}  {escape(reason)}")
    if document["next"] is not None:
        console.print(f"[dim]there is more: --from {document['next']}[/]")


def record(document: dict[str, Any]) -> None:
    """`show STREAM SEQ`."""
    console = Console(highlight=False)
    row = document["record"]
    cause = f": {row['cause']}" if row["cause"] else ""
    console.print(
        f"[bold]{escape(document['name'])} #{row['seq']}[/]  {escape(row['type'])}, "
        f"{span(row['age_s'])} old, {_coloured(row['state'])}{escape(cause)}"
    )
    if row["blob_bytes"]:
        console.print(f"with a blob of {size(row['blob_bytes'])}")
    if document["fault"]:
        console.print(f"[red]{escape(document['fault'])}[/]")
    else:
        console.print(json.dumps(document["body"], indent=2, ensure_ascii=False), markup=False)


def report(document: dict[str, Any]) -> None:
    """`verify`."""
    console = Console(highlight=False)
    if document["offline"]:
        console.print(OFFLINE)
    wide, own = console.width >= WIDE, document["epoch"]
    table = _table(
        "stream",
        ">ledger",
        ">counted",
        ">bytes",
        "dropped",
        stream_columns=_room(document["streams"], own, wide),
    )
    for row in document["streams"]:
        ledger = row["ledger"]
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in ledger["dropped"].items())
        right = row["held_counted"] == ledger["held"] and row["bytes_counted"] == row["bytes"]
        there = f"{row['held_counted']:,}"
        table.add_row(
            *(_named(row, own), f"{ledger['held']:,}"),
            *(there if right else f"[red]{there}[/]", f"{row['bytes_counted']:,}"),
            dropped or "0",
        )
    console.print(table)
    for fault in document["faults"]:
        console.print(f"[red]x[/] {escape(fault)}")
    if document["faults_more"]:
        console.print(f"[red]x[/] and {document['faults_more']:,} more")
    verdict = "[green]it adds up[/]" if document["balanced"] else "[bold red]IT DOES NOT ADD UP[/]"
    depth = "each checked" if document["deep"] else "not read; --deep does"
    console.print(
        f"{verdict}: {counted(sum(r['held_counted'] for r in document['streams']), 'record')}, "
        f"{counted(document['pieces'], 'piece of a blob', 'pieces of blobs')} ({depth}), "
        f"{document['took_s']:.1f} s"
    )
