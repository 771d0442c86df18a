"""The section `watchdog`: who resets this machine, and when no more."""

from typing import Annotated, Literal

from msgspec import Meta

from agent.forms import Seconds
from agent.sections.part import Part


class Gpio(Part, frozen=True):
    """A GPIO line that resets this machine, or cuts its power, while it is active.

    `line` is its offset on the `chip`, as `gpioinfo` shows it; it is held for `hold_s`.
    """

    chip: Annotated[str, Meta(pattern="^/dev/", description="a device, as /dev/gpiochip0")]
    line: Annotated[int, Meta(ge=0, le=4095)]
    active: Literal["high", "low"] = "high"
    hold_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0


class Watchdog(Part, frozen=True):
    """Who resets this machine when the agent does not move: one owner of the hardware's watchdog.

    `systemd` feeds it where it is PID 1 (RuntimeWatchdogSec) and watches the agent by its unit;
    `agent` has the agent feed `device` itself, which then waits for `timeout_s`; `none`: nobody.

    `root_socket` is that of `holdfast-root`, which reboots and resets for the agent (none: nobody
    does). Before that, a reset is tried by the executables of the folder `reset_hooks`, by
    `reset_command` (a program and its words) and by `reset_gpio`; each has `reset_timeout_s`.
    `device` is also asked what reset the machine.

    After `resets_per_day_max` resets within a day of running, or `safe_mode_after` restarts by
    crashes within `safe_mode_window_s`, no model runs (safe mode) until `safe_mode_s` have gone
    well, doubling each time, or until somebody ends it.
    """

    owner: Literal["systemd", "agent", "none"] = "systemd"
    device: str = "/dev/watchdog0"
    timeout_s: Annotated[int, Meta(ge=10, le=3600)] = 90
    root_socket: str | None = None
    reset_hooks: str = "/etc/holdfast/reset.d"
    reset_command: Annotated[list[str], Meta(min_length=1, max_length=16)] | None = None
    reset_gpio: Gpio | None = None
    reset_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    resets_per_day_max: Annotated[int, Meta(ge=1, le=50)] = 6
    safe_mode_after: Annotated[int, Meta(ge=2, le=100)] = 5
    safe_mode_window_s: Seconds = 900.0
    safe_mode_s: Seconds = 21_600.0
