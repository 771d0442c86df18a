"""`holdfast health`: every check with its verdict, and what to do about those that did not pass."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from agent.cli.client import Client
from agent.cli.screen import Console
from agent.cli.status import CODES, COLOURS, conditions
from agent.words import counted

TIMEOUT_S = 20.0  # the agent answers within five, if it can
MARKS = {"pass": "green", "warn": "yellow", "fail": "red"}


def show(config: Path, as_json: bool) -> int:
    """Print what was found; the exit code. Raises AgentUnreachable."""
    found = Client.of(config, TIMEOUT_S).get("/api/v1/health/smart")
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)
    return CODES[found["status"]]


def _print(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    word, held = found["status"], found["conditions"]
    console.print(f"[bold {COLOURS[word]}]{word}[/]  {counted(len(held), 'condition')}")
    conditions(console, found)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for one in found["checks"]:
        said = Text(one["found"])
        if one["verdict"] != "pass":
            said.append(f"; expected {one['expected']}\n-> {one['remedy']}", style="dim")
        mark = Text(one["verdict"], style=MARKS[one["verdict"]])
        table.add_row(mark, one["name"], Text(one["subject"]), said)
    console.print(table)
