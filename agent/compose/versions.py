"""The configuration's versions, and what of it can be changed while the agent runs.

One more section that can is one more line in `_hot`; all others take a restart.
"""

from collections.abc import Callable

from msgspec.structs import replace

from agent import logs
from agent.clock import Clock
from agent.compose.core import Core
from agent.compose.health import HealthParts
from agent.compose.inference import InferenceParts
from agent.compose.link import LinkParts
from agent.compose.starts import limits
from agent.compose.watchdog import WatchdogParts
from agent.config import Config, Watchdog
from agent.versions.judge import Seen
from agent.versions.notices import Notices
from agent.versions.plan import Hot
from agent.versions.start import Begun
from agent.versions.versions import Versions

BUDGETS = ("resets_per_day_max", "safe_mode_after", "safe_mode_window_s", "safe_mode_s")


class VersionParts:
    """The versions, with hands."""

    def __init__(
        self,
        core: Core,
        begun: Begun,
        inference: InferenceParts,
        link: LinkParts,
        health: HealthParts,
        watchdog: WatchdogParts,
        restart: Callable[[str], None],
    ) -> None:
        """`restart` ends the agent in order, so that it begins anew, and says why."""
        self._link = link
        self._health = health
        self._watchdog = watchdog
        self._reload = inference.reload
        self._conditions = core.conditions
        self._clock: Clock = core.clock
        self.versions = Versions(
            begun, self._hot(), self._seen, restart, Notices(core.conditions), core.clock
        )

    def _hot(self) -> dict[str, Hot]:
        """In the order in which they are changed: first the domains, whose models may refuse."""
        return {
            "domains": Hot(self._reload.restart, self._reload.apply),
            "link": Hot(
                lambda before, after: self._link.restart_for(before.link, after.link),
                lambda after: self._link.change(after.link),
            ),
            "power": Hot(_never, self._change_power),
            "watchdog": Hot(_beyond_budgets, self._change_budgets),
            "log_level": Hot(_never, _change_log_level),
        }

    async def _change_power(self, after: Config) -> None:
        self._health.power.change(after.power)

    async def _change_budgets(self, after: Config) -> None:
        self._watchdog.starts.change(limits(after.watchdog))

    def _seen(self) -> Seen:
        since = self._link.link.connected_since
        link_s = None if since is None else self._clock.monotonic() - since
        return Seen(link_s, self._conditions.all())


def _never(_: Config, __: Config) -> str:
    return ""


def _beyond_budgets(before: Config, after: Config) -> str:
    same = {name: getattr(after.watchdog, name) for name in BUDGETS}
    if _with(before.watchdog, same) == after.watchdog:
        return ""
    return "all but the budgets of restarts and resets is read at the start alone"


def _with(settings: Watchdog, changes: dict[str, object]) -> Watchdog:
    return replace(settings, **changes)


async def _change_log_level(after: Config) -> None:
    logs.set_level(after.log_level)
