"""What the board may take: who looks, who decides, and who sets it."""

from agent.compose.core import Core
from agent.compose.inference import InferenceParts
from agent.compose.watchdog import WatchdogParts
from agent.health.accelerators import AcceleratorWatch
from agent.health.power.governor import Verdict
from agent.health.power.power import Board, Power
from agent.health.watchdog.watchdog import Event
from agent.host.accelerators.jetson import power_mode
from agent.host.root.forms import Nvpmodel
from agent.host.supply import battery_left, cpu_c


def power(
    core: Core,
    inference: InferenceParts,
    watchdog: WatchdogParts,
    accelerators: AcceleratorWatch,
) -> Power:
    """The governor, with the root daemon for hands."""

    def note(verdict: Verdict) -> None:
        profile, why = verdict
        event = Event("power", "profile", why or "no rule holds", f"{profile} is in force")
        watchdog.chronicle.note(event)

    async def set_mode(mode: int) -> str:
        return await watchdog.root.ask(Nvpmodel(mode=mode))

    return Power(
        core.settings.power,
        lambda: Board(cpu_c(), battery_left(), power_mode()),
        accelerators.hottest_c,
        set_mode,
        inference.domains.rest,
        note,
        core.conditions,
        core.clock,
    )
