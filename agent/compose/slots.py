"""The agent's own update: where its slots are, and what a new version has to show."""

from collections.abc import Callable
from pathlib import Path

from agent import VERSION
from agent.compose.core import Core
from agent.compose.link import LinkParts
from agent.compose.watchdog import WatchdogParts
from agent.host.slots.layout import Slots
from agent.host.systemd import state_folder
from agent.store import schema
from agent.threads import apart
from agent.updates.slots.probe import Answer, Probe
from agent.updates.slots.record import Before, Kept
from agent.updates.slots.shown import Running, running
from agent.updates.slots.trial import LOOK_S, Trial
from agent.updates.slots.update import Updating
from agent.versions.judge import counting


class SlotParts:
    """`trial.run` is a loop of the agent's; `updating` is for who orders an update, `shown` for who
    asks what runs."""

    def __init__(
        self,
        path: Path,
        core: Core,
        link: LinkParts,
        watchdog: WatchdogParts,
        restart: Callable[[str], None],
    ) -> None:
        """`path` is the file of --config; `restart` ends the agent in order, to be started again,
        and says why."""
        self._core, self._link, self._watchdog = core, link, watchdog
        slots, folder = Slots.of_this_process(), state_folder()
        # Not beside the store, whose disk may be gone; and where root looks for a package.
        place = folder / "update.json" if folder else core.beside("update.json")
        kept = Kept(place, core.clock)
        self._slots, self._kept = slots, kept
        own = Answer(VERSION, len(schema.steps()), schema.OPENS_FROM)
        ask = Probe(path, own).ask
        root = watchdog.root
        self.updating = Updating(slots, root, kept, ask, self._now, restart, VERSION)
        self.trial = Trial(
            *(slots, root, kept, self._lacks, restart, core.conditions, core.clock, VERSION),
            core.settings.updates.confirm_s,
        )

    async def shown(self) -> Running:
        """Which version of the agent runs, and how it stands."""
        return await apart(lambda: running(VERSION, self._slots, self._kept.now))

    def _now(self) -> Before:
        up = self._link.link.connected_since is not None
        return Before.of(self._core.conditions.all(), link_up=up)

    def _lacks(self, before: Before) -> str:
        """What is worse than before; this version's own list says what speaks against it."""
        if not self._watchdog.watchdog.fed:
            return "not all that must move does"
        held = [one for one in self._core.conditions.all() if counting(one)]
        if worse := [f"{one.name} {one.subject}" for one in held if not before.had(one)]:
            return f"it is not well: {', '.join(sorted(worse))}"
        return self._link_lacks() if before.link_up else ""

    def _link_lacks(self) -> str:
        """What is wrong with the link; one that was lost since the last look is not there yet."""
        since_s = self._link.link.connected_since
        if since_s is None:
            return f"the link was up before, and is not: {self._link.link.state()['down_cause']}"
        if self._core.clock.monotonic() - since_s < 2 * LOOK_S:
            return "the link was up before, and has begun anew just now"
        return ""
