"""`holdfast status`: the device's state in one screen."""

import json
import time
from pathlib import Path
from typing import Any

from msgspec import convert
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from agent import config_file
from agent.cli import accelerators_view, sync_view
from agent.cli.client import TIMEOUT_S, Client
from agent.cli.screen import Console
from agent.cli.units import size as _size
from agent.cli.units import span as _span
from agent.cli.watchdog_view import began
from agent.errors import AgentSilent, AgentUnreachable
from agent.records import Balance
from agent.words import counted

CODES = {"healthy": 0, "degraded": 4, "unhealthy": 5}
COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}
MARKS = {"critical": "red", "warning": "yellow", "note": "dim"}


def show_conditions(config: Path, as_json: bool) -> int:
    """Print the conditions that hold; the exit code. Raises as `show`."""
    document, alarm = _asked(config, "/api/v1/conditions")
    word = document["status"]
    if as_json:
        print(json.dumps(document))
    else:
        console = Console(highlight=False)
        _warn(console, document, alarm)
        console.print(f"[bold {COLOURS[word]}]{word}[/]")
        conditions(console, document)
    return AgentUnreachable.exit_code if alarm else CODES[word]


def show(config: Path, as_json: bool, timeout_s: float = TIMEOUT_S) -> int:
    """Print the state; the exit code. Raises AgentUnreachable when there is not even a snapshot."""
    document, alarm = _asked(config, "/api/v1/status", timeout_s)
    if as_json:
        print(json.dumps(document))
    else:
        _print(document, alarm)
    return AgentUnreachable.exit_code if alarm else CODES[document["status"]]


def _asked(config: Path, route: str, timeout_s: float = TIMEOUT_S) -> tuple[dict[str, Any], str]:
    """What the agent says; or the last snapshot, with an alarm that says why."""
    settings = config_file.load(config)
    try:
        return Client(Path(settings.api.socket), timeout_s).get(route), ""
    except AgentUnreachable as error:
        silent = isinstance(error, AgentSilent)
        alarm = "THE AGENT DOES NOT ANSWER." if silent else "NO AGENT RUNS."
        snapshot = _snapshot(Path(settings.store.path).with_name("status.json"))
        if snapshot is None:
            raise
        return snapshot, alarm


def _snapshot(path: Path) -> dict[str, Any] | None:
    """The last state with its age; None if there is none, or a power cut has spoilt it."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        age_s = time.time() - document["at_us"] / 1e6  # the clock may have been set back
        document["snapshot_age_s"] = round(max(0.0, age_s), 1)
    except (OSError, ValueError, TypeError, LookupError):
        return None
    return document


def _print(document: dict[str, Any], alarm: str) -> None:
    """Show a state; an `alarm` says why it is only the last one known."""
    console = Console(highlight=False)
    _warn(console, document, alarm)
    word = document["status"]
    console.print(
        f"[bold {COLOURS[word]}]{word}[/]  {document['device']}  up {_span(document['uptime'])}"
        f"  holdfast {document['version']}"
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    _rows(table, document)
    console.print(table)
    console.print(_ledger(document["ledger"]))
    conditions(console, document)


def _warn(console: Console, document: dict[str, Any], alarm: str) -> None:
    if alarm:
        age = _span(document["snapshot_age_s"])
        console.print(f"[red]{alarm}[/] What follows is its last state, {age} old.")


def conditions(console: Console, document: dict[str, Any]) -> None:
    """What holds, and what to do about it."""
    for condition in document["conditions"]:
        mark = MARKS[condition["severity"]]
        head = Text(f"{condition['name']} ({condition['subject']})", style=mark)
        head.append(f" for {_span(condition['age_s'])}: {condition['cause']}", style="default")
        _hanging(console, head, "", "  ")
        if condition["remedy"]:
            _hanging(console, Text(condition["remedy"], style="dim"), "  -> ", "     ")


def _hanging(console: Console, text: Text, first: str, others: str) -> None:
    """A text whose other lines stand further in, so that one sees where each begins."""
    lines = text.wrap(console, console.width - len(others))
    for number, line in enumerate(lines):
        line.rstrip()
        console.print(Text(others if number else first, style="dim"), line, sep="", soft_wrap=True)


def _rows(table: Table, document: dict[str, Any]) -> None:
    link = document["link"]
    table.add_row("link", sync_view.link(link))
    table.add_row("acks", sync_view.acks(link))
    if "backlog" in link:  # a snapshot may be of a former version
        table.add_row("backlog", sync_view.backlog(link))
    for name, domain in document["domains"].items():
        ready = "ready" if domain["ready"] else f"[red]down: {escape(domain['cause'])}[/]"
        if domain.get("rests"):
            ready = f"[yellow]rests: {escape(domain['rests'])}[/]"
        on = f", {domain['ep']}" if domain["ep"] else ""
        table.add_row(
            "domain",
            f"{name}: {ready}{on}, restarted {counted(domain['restarts'], 'time')}",
        )
        if domain["model"]:
            table.add_row("model", domain["model"])
    for line in accelerators_view.lines(document.get("accelerators")):
        table.add_row("gpu", line)
    for line in accelerators_view.power(document.get("power")):
        table.add_row("power", line)
    store = document["store"]
    table.add_row(
        "store",
        f"{_size(store['used_bytes'])} of {_size(store['bytes_max'])} used, disk "
        f"{_size(store['disk_free_bytes'])} free",
    )
    if flash := store.get("flash"):  # a snapshot may be of a former version
        table.add_row("flash", _flash(flash))
    table.add_row("epoch", store["epoch"])
    if start := document.get("start"):
        table.add_row("began", began(start))
    sources = ", ".join(
        f"{name} ({s['kind']}{', rejected ' + str(s['rejected']) if s.get('rejected') else ''})"
        for name, s in document["sources"].items()
    )
    table.add_row("sources", sources or "none")


def _flash(flash: dict[str, Any]) -> str:
    """How the disk wears: who writes how much, for how much payload, and how long it lasts."""
    words = []
    for source, name in (("process", "agent"), ("device", flash["device"] or "disk")):
        rate = flash["sources"][source]
        known = rate and rate["bytes_per_day"] is not None
        said = f"{_size(rate['bytes_per_day'])}/day" if known else "unknown"
        words.append(f"{escape(name)} {said}")
    times, years = flash["write_amplification"], flash["life_years"]
    words.append("amplification " + ("unknown" if times is None else f"{times:.1f}"))
    words.append("life unknown" if years is None else f"lasts {years:.1f} years")
    if flash["life_time"]:
        words.append(f"life_time {escape(flash['life_time'])}")
    return ", ".join(words)


def _ledger(ledger: dict[str, Any]) -> Table:
    balances = {name: convert(row, Balance) for name, row in ledger.items()}
    wrong = [name for name, balance in balances.items() if not balance.balanced]
    verdict = f"[bold red]DOES NOT BALANCE: {', '.join(wrong)}[/]" if wrong else "balances"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ledger", no_wrap=True, min_width=max(map(len, balances), default=0))
    for column in ("produced", "delivered", "held"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("dropped", min_width=9, overflow="fold")
    for name, row in balances.items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in row.dropped.items())
        table.add_row(name, str(row.produced), str(row.delivered), str(row.held), dropped or "0")
    table.add_row(verdict, style="dim")
    return table
