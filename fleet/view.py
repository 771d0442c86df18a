"""What `holdfast-fleet devices` and `gaps` show people."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape

from agent.words import counted, printable
from fleet.store.gaps import Conflict, Report
from fleet.table import Table, show

_HEARD = ("presence_us", "heartbeat_us", "stored_us")
_PRESENCE = {True: "[green]online[/]", False: "[red]offline[/]", None: "[dim]unknown[/]"}


def devices(found: list[dict[str, Any]]) -> None:
    """One line each."""
    console = Console(highlight=False)
    online = sum(one["online"] is True for one in found)
    retired = sum(one["retired"] for one in found)
    rest = f", {retired:,} retired" if retired else ""
    console.print(f"{counted(len(found), 'device')}, {online:,} online{rest}")
    columns = (">heard", ">records", ">size", ">gaps", ">blobs", ">orders", "tags")
    rows = Table("device", "presence", "status", *columns)
    for one in found:
        heard = max(filter(None, (one[key] for key in _HEARD)), default=None)
        rows.add_row(
            plain(one["device"]),
            "[dim]retired[/]" if one["retired"] else _PRESENCE[one["online"]],
            plain(one["status"] or ""),
            *(age(heard), f"{one['records']:,}", _size(one["size_bytes"])),
            *(f"{one[key]:,}" if one[key] else "" for key in ("gaps", "unfinished", "open")),
            plain(" ".join(one["tags"])),
        )
    show(console, rows)


def gaps(found: Report) -> None:
    """Missing ranges, ledgers that differ, and seqs that were given out twice."""
    console = Console(highlight=False)
    if not found.gaps and not found.differences and not found.conflicts:
        console.print("nothing is missing")
        return
    if found.gaps:
        total = counted(found.gaps_total, "gap")
        console.print(f"{total}: seqs that are missing below one that is there")
        rows = Table("device", "epoch", "stream", ">first", ">last", ">records", ">since")
        for one in found.gaps:
            rows.add_row(
                *map(plain, (one.device, one.epoch, one.stream)),
                *(str(one.first), str(one.last)),
                *(f"{one.last - one.first + 1:,}", age(one.since_us)),
            )
        show(console, rows)
        if found.gaps_total > len(found.gaps):
            console.print(f"… and {found.gaps_total - len(found.gaps):,} more: see --device")
    if found.differences:
        console.print("ledgers that do not fit what is stored")
        columns = (">produced", ">delivered", ">held", ">dropped", ">unexplained")
        rows = Table("device", "epoch", "stream", *columns, ">stored", ">lost")
        for each in found.differences:
            told = (each.produced, each.delivered, each.held, each.dropped, each.unexplained)
            counts = (f"{n:,}" for n in (*told, each.stored, each.lost))
            rows.add_row(*map(plain, (each.device, each.epoch, each.stream)), *counts)
        show(console, rows)
    if found.conflicts:
        _conflicts(console, found.conflicts)


def _conflicts(console: Console, found: list[Conflict]) -> None:
    console.print(
        "seqs that were given out twice: a device's disk was put back from a copy, or two devices "
        "have one.\nWhat came first is stored. The device keeps the other records, and its "
        "`holdfast status` says what to do"
    )
    rows = Table("device", "epoch", "stream", ">first", ">last", ">batches", ">since", ">last")
    for one in found:
        rows.add_row(
            *map(plain, (one.device, one.epoch, one.stream)),
            *(str(one.first), str(one.last)),
            *(f"{one.batches:,}", age(one.since_us), age(one.last_us)),
        )
    show(console, rows)


def plain(text: str) -> str:
    """Text from outside: neither markup nor what bends a terminal."""
    return escape(printable(text))


def age(then_us: int | None) -> str:
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
