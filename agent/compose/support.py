"""What the archive for support has of each part. One more member is one more line in `parts`."""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agent import VERSION, logs
from agent.commands import shown
from agent.commands.verb import Verb
from agent.commands.verbs.diagnostics import Check
from agent.commands.verbs.support import Level, SupportVerbs
from agent.compose.core import Core
from agent.compose.health import HealthParts
from agent.compose.watchdog import WatchdogParts
from agent.errors import NotThere
from agent.masked import masked
from agent.store.journal import Entry, Journal
from agent.support import Origin, Part, Support, journal, machine
from agent.threads import apart
from agent.versions.versions import Versions

COMMANDS = 200  # of the journal, the last
ABOUT = ("conditions", "ledger", "store", "link", "domains", "models", "sources", "accelerators")
ABOUT_TOO = ("power", "starts", "clock")


class SupportParts:
    """The archives, and the verbs that send them."""

    def __init__(
        self,
        core: Core,
        health: HealthParts,
        watchdog: WatchdogParts,
        versions: Versions,
        checks: Mapping[str, tuple[str, Check]],
    ) -> None:
        """`checks` are those of `diagnose`."""
        self._core = core
        self._origin = Origin(core.device, VERSION)
        looked = {f"{name}.json": checks[name][1] for name in (*ABOUT, *ABOUT_TOO)}
        parts: dict[str, Part] = {
            "status.json": health.status.document,
            **looked,
            "commands.json": partial(_commands, core.store.journal, core.device),
            "config.yaml": partial(_config, versions),
            "config-versions.json": _told(versions.shown),
            "watchdog.json": partial(_watched, watchdog),
            "machine.json": lambda: apart(partial(machine, core.store.path.parent)),
            **_log("debug", with_journal=True),
        }
        self.archive = Support(self._origin, parts, core.clock).archive

    def verbs(self) -> list[Verb[Any]]:
        """What can be ordered."""
        return SupportVerbs(self.archive, self._log, self._core.store.uploads.keep).verbs()

    async def _log(self, level: Level, with_journal: bool) -> bytes:
        parts = _log(level, with_journal=with_journal)
        return await Support(self._origin, parts, self._core.clock).archive()


def _log(level: str, *, with_journal: bool) -> dict[str, Part]:
    told: dict[str, Part] = {"log.txt": _told(lambda: _lines(level))}
    return told | ({"journal.txt": lambda: apart(journal)} if with_journal else {})


def _told(what: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    async def part() -> Any:
        return what()

    return part


def _lines(level: str) -> str:
    found = logs.RECENT.lines(0, level)
    head = [f"({found.missed} lines before these are not kept)"] if found.missed else []
    return "\n".join([*head, *(_line(one) for one in found.lines)]) + "\n"


def _line(line: logs.LogLine) -> str:
    second, us = divmod(line.at_us, 1_000_000)
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{at}.{us:06}Z {line.level:<7} {line.source:<9} {line.text}"


async def _watched(watchdog: WatchdogParts) -> dict[str, Any]:
    return {
        "parts": watchdog.watchdog.seen(),
        "events": watchdog.chronicle.last(),
        "hardware": await watchdog.device.now(),
    }


async def _config(versions: Versions) -> str:
    """The live version; where none are kept, the file."""
    try:
        return (await versions.document()).document
    except NotThere:
        file = Path(versions.shown().file)
        return masked(await apart(file.read_bytes))


async def _commands(kept: Journal, device: str) -> dict[str, Any]:
    return {
        "commands": [_command(one, device) for one in await kept.page(None, COMMANDS)],
        "refusals": await kept.refusals(COMMANDS),
        "counts": await kept.counts(),
    }


def _command(entry: Entry, device: str) -> dict[str, Any]:
    more = ("door", "issuer", "by", "attempts", "step", "accepted_us", "ended_us")
    return {
        **msgspec.structs.asdict(shown.result(entry, device)),
        **{key: getattr(entry, key) for key in more},
        "args": msgspec.Raw(entry.args),
    }
