"""`holdfast logs`: the last lines that the agent wrote, and those to come."""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.text import Text

from agent.cli.client import Client
from agent.cli.screen import Console
from agent.errors import AgentSilent, AgentUnreachable

LOGS = "/api/v1/logs"
COLOURS = {"warning": "yellow", "error": "red", "critical": "red", "debug": "dim"}


def show(config: Path, count: int, level: str, *, follow: bool, as_json: bool) -> None:
    """Print them. Raises AgentUnreachable, and says where the log is then."""
    client, only = Client.of(config), f"level={quote(level, safe='')}"
    try:
        document = client.get(f"{LOGS}?count={count}&{only}")
    except AgentSilent:
        raise
    except AgentUnreachable as error:
        raise AgentUnreachable(
            f"{error}; the lines it kept in memory went with it",
            "journalctl -u holdfast, where systemd ran it; else the terminal it ran in",
        ) from error
    if as_json and not follow:
        print(json.dumps(document))
        return
    console = Console(highlight=False)
    for line in document["lines"]:
        _print(console, line, as_json)
    if follow:
        _follow(client, f"{LOGS}/events?{only}&after={document['last']}", console, as_json)


def _follow(client: Client, route: str, console: Console, as_json: bool) -> None:
    for name, document in client.follow(route):
        if name == "line":
            _print(console, document, as_json)
        elif name == "missed" and not as_json:
            console.print(f"({document['lines']} lines came too fast)", style="dim")
    raise AgentUnreachable("the agent ended, and its log with it", "start it, and follow again")


def _print(console: Console, line: dict[str, Any], as_json: bool) -> None:
    if as_json:  # a line, a document
        print(json.dumps(line), flush=True)
        return
    at = line["at_us"] / 1e6
    clock = time.strftime("%m-%d %H:%M:%S", time.localtime(at))
    text = Text(f"{clock} {line['level']:<7} {line['source']:<9} ")
    text.stylize(COLOURS.get(line["level"], ""))
    text.append(line["text"], style="default")
    console.print(text, soft_wrap=True)
