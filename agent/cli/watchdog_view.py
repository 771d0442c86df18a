"""What `holdfast watchdog` shows people."""

import time
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.client import Client
from agent.cli.screen import Console
from agent.cli.units import span
from agent.errors import AgentSilent, AgentUnreachable

COLOURS = {"fine": "green", "late": "yellow", "dead": "red", "flapping": "yellow"}
LOOK_S = 0.5
BACK_S = 120.0  # two remedies one after the other, and a slow board's start
UNHEALTHY = 5


def parts(document: dict[str, Any]) -> None:
    """`status`."""
    console = Console(highlight=False)
    fed = "fed" if document["fed"] else "[red]not fed: whoever resets this machine will[/]"
    console.print(f"whoever watches over the agent is {fed}")
    if document["disarmed_s"] is not None:
        console.print(
            f"[yellow]disarmed[/] for {span(document['disarmed_s'])} yet: it does nothing"
        )
    start(document)
    console.print(hardware(document["hardware"]), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("part", "is", "for", "steps done", "remedies", ""):
        table.add_column(column, overflow="fold")
    for one in document["parts"]:
        verdict = one["verdict"]
        table.add_row(
            escape(one["part"]),
            f"[{COLOURS[verdict]}]{verdict}[/]",
            span(one["still_s"]) if one["still_s"] else "",
            str(one["done"]),
            str(one["remedies"] or ""),
            escape(one["why"]),
        )
    console.print(table)


def start(document: dict[str, Any]) -> None:
    """Why the agent began, and how often that may yet be."""
    console, one = Console(highlight=False, soft_wrap=True), document["start"]
    console.print(began(one))
    if not one["safe_mode"]:
        left, most = one["resets_left"], one["resets_per_day_max"]
        console.print(f"{left} of {most} resets of the machine in a day of running are left")


def began(one: dict[str, Any]) -> str:
    """The start, in a line; in safe mode in two."""
    at = datetime.fromtimestamp(one["at_us"] / 1e6).strftime("%Y-%m-%d %H:%M:%S")
    said = f"{at}, [bold]{one['cause']}[/]: {escape(one['why'])}"
    if safe := one["safe_mode"]:
        said += f"\n[red]safe mode, no model runs: {escape(safe['why'])}[/]; it ends in "
        said += f"{span(safe['leaves_in_s'])}, or by: holdfast watchdog resume"
    return said


def hardware(one: dict[str, Any]) -> str:
    """The machine's own watchdog, in a line."""
    found, device = one["found"], escape(one["device"])
    if found is None:
        return f"{device}: this machine has no watchdog of its own"
    armed = {True: "armed", False: "[yellow]not armed[/]", None: "its driver does not say more"}
    said = [armed[found["armed"]], f"owner {one['owner']}"]
    for name, word in (
        ("timeout_s", "waits for"),
        ("time_left_s", "left"),
        ("pretimeout_s", "pretimeout"),
        ("timeout_s_max", "at most"),
    ):
        if found[name]:
            said.append(f"{word} {found[name]} s")
    if found["nowayout"]:
        said.append("cannot be disarmed")
    if found["causes"]:
        said.append(f"reset this machine: {', '.join(found['causes'])}")
    return f"{device} ({escape(found['identity'])}): {', '.join(said)}"


def events(document: dict[str, Any]) -> None:
    """`history`."""
    console = Console(highlight=False, soft_wrap=True)
    if not document["events"]:
        console.print("nothing: every part has always moved")
    for one in document["events"]:
        at = datetime.fromtimestamp(one["at_us"] / 1e6).strftime("%Y-%m-%d %H:%M:%S")
        event = one["event"]
        what = f"{event['part']}: {event['remedy']}: {event['outcome']}"
        console.print(f"{at}  [bold]{escape(what)}[/]\n    why: {escape(event['cause'])}")


def hooks(document: dict[str, Any]) -> None:
    """`test reset --dry-run`."""
    console = Console(highlight=False, soft_wrap=True)
    if not document["hooks"]:
        console.print("nothing resets this machine: no hook is configured (docs/watchdog.md)")
    for number, one in enumerate(document["hooks"], 1):
        if one["trouble"]:
            console.print(f"{number}. {escape(one['hook'])}: [red]{escape(one['trouble'])}[/]")
            console.print(f"   try: {escape(one['remedy'])}")
        else:
            console.print(f"{number}. {escape(one['hook'])}: {escape(one['would'])}")


class Watching:
    """A test of the watchdog, as it goes."""

    def __init__(self, client: Client, part: str) -> None:
        self._client = client
        self._part = part
        self._began_s = time.monotonic()
        self._said = ""
        self._console = Console(highlight=False, soft_wrap=True)
        self._ill = False  # it was seen to stand still, or another process is in its place
        self._pids = self._processes()

    def until_back(self) -> int:
        """Tell what changes until the part moves again; the exit code."""
        self._tell(f"{self._part} is hung on purpose")
        while time.monotonic() - self._began_s < BACK_S:
            time.sleep(LOOK_S)
            if self._look():
                self._tell("all parts move: holdfast watchdog history tells what was done")
                return 0
        self._tell("it is not back: see its log; only systemd starts an agent again that ended")
        return UNHEALTHY

    def _processes(self) -> dict[str, int | None]:
        domains = self._client.get("/api/v1/status")["domains"]
        return {name: one["pid"] for name, one in domains.items() if one["ready"]}

    def _look(self) -> bool:
        try:
            found = self._client.get("/api/v1/watchdog")
            ready = self._processes()
        except (AgentSilent, AgentUnreachable) as error:
            self._ill = True
            self._tell(str(error))
            return False
        still = [one for one in found["parts"] if one["verdict"] != "fine"]
        down = [f"domain {name}" for name in self._pids if name not in ready]
        for one in still:
            self._tell(f"{one['part']} is {one['verdict']}")
        if down:
            self._tell(f"{', '.join(down)}: not ready")
        for name, pid in ready.items():
            if pid != self._pids.get(name, pid):
                self._tell(f"domain {name} has another process")
        self._ill = self._ill or bool(still or down) or ready != self._pids
        return self._ill and found["fed"] and bool(found["parts"]) and not still and not down

    def _tell(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._console.print(f"{time.monotonic() - self._began_s:6.1f} s  {escape(what)}")
