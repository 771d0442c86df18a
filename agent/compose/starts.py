"""Why the agent began, and what that costs: where that is found, and where it is kept."""

from collections.abc import Callable
from pathlib import Path

from agent import config
from agent.compose.core import Core
from agent.health.starts.budget import PAUSE_S, Limits
from agent.health.starts.starts import Places, Starts
from agent.health.watchdog.watchdog import Event
from agent.host import reset_reason
from agent.host.systemd import state_folder
from agent.host.wdt import HardwareWatchdog
from agent.inference.domains.hold import Hold


def starts(core: Core, hold: Hold, note: Callable[[Event], None]) -> Starts:
    """Judged, and not written down yet."""
    state = state_folder()
    places = Places(
        *(core.beside("starts.json"), core.beside("status.json"), core.beside("hung.txt")),
        uncounted=state / "uncounted" if state else None,
    )
    return Starts(
        places,
        lambda: _causes(Path(core.settings.watchdog.device)),
        limits(core.settings.watchdog),
        hold,
        note,
        core.conditions,
        core.clock,
    )


def limits(settings: config.Watchdog) -> Limits:
    """How often the agent and its machine may begin anew by themselves."""
    return Limits(
        *(settings.resets_per_day_max, settings.safe_mode_s),
        *(settings.safe_mode_after, settings.safe_mode_window_s),
        # What the agent itself feeds would reset the machine meanwhile.
        0.0 if settings.owner == "agent" else PAUSE_S,
    )


def _causes(device: Path) -> set[str] | None:
    """What reset the machine: all that its watchdog and its power controller say."""
    found = HardwareWatchdog(device).found()
    return reset_reason.joined(found.causes if found else None, reset_reason.causes())
