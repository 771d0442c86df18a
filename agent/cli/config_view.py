"""What `holdfast config` shows people."""

from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console
from agent.cli.units import size, span

WORDS = {
    "": "",
    "chosen": "chosen",
    "started": "started on trial",
    "in_force": "in force",
    "confirmed": "confirmed",
    "taken_back": "taken back",
}


def versions(document: dict[str, Any]) -> None:
    """`versions`."""
    console = Console(highlight=False)
    live, in_force = document["live"], document["in_force"]
    console.print(f"version [bold]{live}[/] is live; the file is {escape(document['file'])}")
    if in_force != live:
        said = f"version {in_force}" if in_force else "the file itself"
        console.print(f"this agent is on {said} until it is restarted")
    for name, why in document["waits"].items():
        console.print(f"{name} waits for a restart: {escape(why)}")
    if trial := document["trial"]:
        _trial(console, trial)
    if back := document["taken_back"]:
        console.print(f"version {back['number']} was taken back: {escape(back['why'])}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("version", "state", "came", "size", "from", "by", "why"):
        table.add_column(column, overflow="fold")
    for row in document["versions"]:
        mark = "*" if row["number"] == live else ""
        came = datetime.fromtimestamp(row["at_us"] / 1e6).strftime("%Y-%m-%d %H:%M")
        cells = [f"{row['number']}{mark}", WORDS[row["state"]], came, size(row["size_bytes"])]
        table.add_row(*cells, row["origin"], escape(row["who"]), escape(row["why"]))
    console.print(table)


def applied(document: dict[str, Any]) -> None:
    """`apply`, `rollback`: what is done, or would be."""
    console = Console(highlight=False, soft_wrap=True)
    number = document["number"]
    if document["state"] == "same":
        console.print(f"version {number} says the same; nothing is done")
        return
    would = "would be version" if document["state"] == "dry_run" else "version"
    changed = ", ".join(document["changed"]) or "nothing that is in force"
    console.print(f"{would} {number}; it changes {changed}")
    for name, why in document["restart"].items():
        console.print(f"  the agent restarts for {name}: {escape(why)}")
    if document["lost"]:
        console.print(f"  lost: {document['lost']}")
    if document["state"] in ("confirmed", "taken_back"):
        ended(document)


def ended(document: dict[str, Any]) -> None:
    """What became of it."""
    console = Console(highlight=False, soft_wrap=True)
    word = "stays" if document["state"] == "confirmed" else "[red]is taken back[/]"
    console.print(f"version {document['number']} {word}: {escape(document['why'])}")


def _trial(console: Console, trial: dict[str, Any]) -> None:
    left = "" if trial["left_s"] is None else f" in {span(trial['left_s'])}"
    how = {"auto": "it is judged", "manual": "it is taken back unless it is confirmed"}
    end = how.get(trial["confirm"], "it stays once the agent runs on it")
    console.print(f"it is on trial: {end}{left}; else version {trial['former']} comes back")
    for one in trial["faults"]:
        console.print(f"  against it: {escape(one)}")
