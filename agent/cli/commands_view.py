"""What `holdfast commands` shows people."""

import json
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console

COLOURS = {"succeeded": "green", "running": "yellow", "accepted": "yellow"}  # others: red


def catalogue(found: list[dict[str, Any]]) -> None:
    """`help`."""
    console = Console(highlight=False)
    table = _table("command", "scope", "what it does")
    for one in found:
        grave = " [yellow](grave)[/]" if one["grave"] else ""
        table.add_row(one["name"], one["scope"], f"{escape(one['summary'])}{grave}")
    console.print(table)
    console.print("[dim]holdfast commands help NAME shows what one takes[/]")


def verb(found: dict[str, Any]) -> None:
    """`help NAME`."""
    console = Console(highlight=False)
    console.print(f"[bold]{found['name']}[/]  {escape(found['summary'])}")
    after = "goes on after a crash" if found["resumes"] else "is told as interrupted by a crash"
    takes = f"scope {found['scope']}, {found['timeout_s']:g} s at most, {after}"
    console.print(f"{takes}{'; grave' if found['grave'] else ''}")
    args = found["args"]
    if about := args.get("description"):
        console.print(escape(about))
    table = _table("key", "form", "default")
    needed = set(args.get("required", ()))
    for key, form in args.get("properties", {}).items():
        default = "needed" if key in needed else json.dumps(form.pop("default", None))
        table.add_row(key, escape(json.dumps(form)), default)
    if args.get("properties"):
        console.print(table)


def commands(found: list[dict[str, Any]]) -> None:
    """`ls`."""
    console = Console(highlight=False)
    if not found:
        console.print("no commands")
        return
    table = _table("id", "command", "state", "at", "")
    for row in found:
        table.add_row(
            *(escape(row["id"]), escape(row["name"]), _state(row), _at(row)),
            escape(row.get("message", "")),
        )
    console.print(table)


def refusals(found: list[dict[str, Any]]) -> None:
    """`ls --refused`."""
    console = Console(highlight=False)
    if not found:
        console.print("nothing was refused")
        return
    table = _table("id", "command", "door", "reason", "at", "")
    for row in reversed(found):
        table.add_row(
            *(escape(row["id"]), escape(row["name"]), row["door"], row["reason"], _at(row)),
            escape(row["message"]),
        )
    console.print(table)


def command(row: dict[str, Any]) -> None:
    """`show`, and what `send` was answered."""
    console = Console(highlight=False)
    share = row.get("progress")
    done = f" {share:.0%}" if share is not None else ""
    console.print(f"[bold]{escape(row['id'])}[/]  {escape(row['name'])}  {_state(row)}{done}")
    for key in ("message", "hint"):
        if row.get(key):
            console.print(f"{'try: ' if key == 'hint' else ''}{escape(row[key])}")
    if row.get("result") is not None:
        console.print(escape(json.dumps(row["result"], indent=1, ensure_ascii=False)))


def twin(found: dict[str, Any]) -> None:
    """`twin`."""
    console = Console(highlight=False)
    console.print(f"reported {found['version']}, wanted {found['desired_version'] or 'nothing'}")
    table = _table("aspect", "standing", "is", "")
    for name, one in found["state"].items():
        standing = one.get("standing") or "[dim]left to the device[/]"
        colour = {"converged": "green", "converging": "yellow"}.get(standing, "red")
        shown = f"[{colour}]{standing}[/]" if one.get("standing") else standing
        actual = escape(json.dumps(one.get("actual"), ensure_ascii=False))
        table.add_row(escape(name), shown, actual, escape(one.get("cause", "")))
    console.print(table)


def _state(row: dict[str, Any]) -> str:
    colour = COLOURS.get(row["state"], "red")
    return f"[{colour}]{row['state']}[/]"


def _at(row: dict[str, Any]) -> str:
    return f"{datetime.fromtimestamp(row['at_us'] / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
