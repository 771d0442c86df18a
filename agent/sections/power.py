"""The section `power`: what the board may take, and when less."""

from typing import Annotated

from msgspec import Meta, field

from agent.forms import Name, Share, TimeOfDay
from agent.sections.part import Part


class PowerProfile(Part, frozen=True):
    """What holds while it is in force: the number of a Jetson's power mode (`nvpmodel -q`; none: as
    it is), and the domains that `rest`, which take no calls."""

    nvpmodel: Annotated[int, Meta(ge=0, le=15)] | None = None
    rest: list[Name] = field(default_factory=list)


class PowerRule(Part, frozen=True, kw_only=True):
    """When `profile` is in force, by one of three.

    Heat: from `above_c` on, of the accelerator or the CPU, until both are 10 degrees cooler.
    Battery: while it is discharged and below `battery_below` (of 1), until it has a tenth more.
    Night: from `begin` to `end` (local time, past midnight too), once the clock is known to be
    true.
    """

    profile: Name
    above_c: Annotated[float, Meta(ge=30, le=120)] | None = None
    battery_below: Share | None = None
    begin: TimeOfDay | None = None
    end: TimeOfDay | None = None


class Power(Part, frozen=True):
    """Of the `rules` the first that holds says which of the `profiles` is in force; else `profile`
    is (none: the board is left as it is)."""

    profiles: dict[Name, PowerProfile] = field(default_factory=dict)
    profile: Name | None = None
    rules: list[PowerRule] = field(default_factory=list)
