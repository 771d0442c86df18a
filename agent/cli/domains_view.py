"""What `holdfast domains` shows people."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

STEPS = {  # of a call, in their order
    "queued_ms": "in the queue",
    "sent_ms": "to the process",
    "taken_apart_ms": "taken apart",
    "computed_ms": "computed",
    "returned_ms": "back",
    "total_ms": "in all",
}


def listed(found: dict[str, Any]) -> None:
    """The domains as a table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("domain", "class", "state", "model", "on"):
        table.add_column(column, overflow="fold")
    for column in ("instances", "waiting", "restarts"):
        table.add_column(column, justify="right")
    for name, one in found.items():
        state = "ready" if one["ready"] else f"[red]down: {escape(one['cause'])}[/]"
        if one["quarantined"]:
            state = f"[red]in quarantine: {escape(one['cause'])}[/]"
        numbers = (len(one["instances"]), one["waiting"], one["restarts"])
        words = (escape(name), one["class"], state, escape(one["model"]), one["ep"])
        table.add_row(*words, *map(str, numbers))
    Console(highlight=False).print(table)


def traced(found: dict[str, Any]) -> None:
    """Calls, and in which step each spent its milliseconds."""
    console = Console(highlight=False)
    if not found["calls"]:
        console.print(f"domain {escape(found['domain'])} has answered no call yet")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("call", justify="right")
    table.add_column("model", overflow="fold")
    table.add_column("class")
    table.add_column("with", justify="right")
    for step in STEPS.values():
        table.add_column(f"{step} ms", justify="right")
    table.add_column("")
    for call in found["calls"]:
        steps = ["" if call[key] is None else f"{call[key]:.2f}" for key in STEPS]
        notes = [call["fault"] or ""]
        if call["tries"]:
            notes.append(f"try {call['tries'] + 1}")
        words = (str(call["id"]), escape(call["model"]), call["class"], str(call["batched"] - 1))
        table.add_row(*words, *steps, " ".join(filter(None, notes)))
    console.print(table)
    console.print("[dim]with: calls that travelled with it in one batch[/]")
