"""What `holdfast-fleet devices` and `gaps` show people."""

import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.words import counted, printable
from fleet.store.gaps import Conflict, Device, Report

_PRESENCE = {True: "[green]online[/]", False: "[red]offline[/]", None: "[dim]unknown[/]"}


def devices(found: list[Device]) -> None:
    """One line each."""
    console = Console(highlight=False)
    online = sum(one.online is True for one in found)
    console.print(f"{counted(len(found), 'device')}, {online:,} online")
    table = _table("device", "presence", "status", ">heard", ">records", ">size", ">gaps", ">blobs")
    for one in found:
        heard = max(filter(None, (one.presence_us, one.heartbeat_us, one.stored_us)), default=None)
        table.add_row(
            _plain(one.device),
            _PRESENCE[one.online],
            _plain(one.status or ""),
            _age(heard),
            f"{one.records:,}",
            _size(one.size_bytes),
            f"{one.gaps:,}" if one.gaps else "",
            f"{one.unfinished:,}" if one.unfinished else "",
        )
    console.print(table)


def gaps(found: Report) -> None:
    """Missing ranges, ledgers that differ, and seqs that were given out twice."""
    console = Console(highlight=False)
    if not found.gaps and not found.differences and not found.conflicts:
        console.print("nothing is missing")
        return
    if found.gaps:
        total = counted(found.gaps_total, "gap")
        console.print(f"{total}: seqs that are missing below one that is there")
        table = _table("device", "epoch", "stream", ">first", ">last", ">records", ">since")
        for one in found.gaps:
            table.add_row(
                *map(_plain, (one.device, one.epoch, one.stream)),
                *(str(one.first), str(one.last)),
                *(f"{one.last - one.first + 1:,}", _age(one.since_us)),
            )
        console.print(table)
        if found.gaps_total > len(found.gaps):
            console.print(f"… and {found.gaps_total - len(found.gaps):,} more: see --device")
    if found.differences:
        console.print("ledgers that do not fit what is stored")
        columns = (">produced", ">delivered", ">held", ">dropped", ">unexplained")
        table = _table("device", "epoch", "stream", *columns, ">stored", ">lost")
        for each in found.differences:
            told = (each.produced, each.delivered, each.held, each.dropped, each.unexplained)
            counts = (f"{n:,}" for n in (*told, each.stored, each.lost))
            table.add_row(*map(_plain, (each.device, each.epoch, each.stream)), *counts)
        console.print(table)
    if found.conflicts:
        _conflicts(console, found.conflicts)


def _conflicts(console: Console, found: list[Conflict]) -> None:
    console.print(
        "seqs that were given out twice: a device's disk was put back from a copy, or two devices "
        "have one.\nWhat came first is stored. The device keeps the other records, and its "
        "`holdfast status` says what to do"
    )
    table = _table("device", "epoch", "stream", ">first", ">last", ">batches", ">since", ">last")
    for one in found:
        table.add_row(
            *map(_plain, (one.device, one.epoch, one.stream)),
            *(str(one.first), str(one.last)),
            *(f"{one.batches:,}", _age(one.since_us), _age(one.last_us)),
        )
    console.print(table)


def _table(*columns: str) -> Table:
    """Columns of text; those whose name begins with `>` hold numbers and are never folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column.startswith(">")
        table.add_column(
            column.lstrip(">"),
            justify="right" if number else "left",
            no_wrap=number or column == "epoch",
            overflow="fold",
        )
    return table


def _plain(text: str) -> str:
    """Text from outside: neither markup nor what bends a terminal."""
    return escape(printable(text))


def _age(then_us: int | None) -> str:
    """How long ago, in its largest unit."""
    if then_us is None:
        return ""
    seconds = max(0.0, time.time() - then_us / 1e6)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(size_bytes: int) -> str:
    """In its largest unit."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size_bytes >= length:
            return f"{size_bytes / length:.1f} {unit}"
    return f"{size_bytes / 1024:.0f} KiB"
