"""What `holdfast status` shows of the accelerators, a line for each, and of what they may take."""

from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from agent.cli.units import size


def lines(found: dict[str, Any] | None) -> Iterator[str]:
    """Of the section of the status; None: a snapshot of a former version, which has none."""
    if found is None:
        return
    if found["cause"]:  # what was read before is old
        yield f"[red]{escape(found['cause'])}[/]"
        return
    if not found["accelerators"]:
        yield "none" if found["backend"] == "none" else "not read yet"
    for one in found["accelerators"]:
        if one["present"]:
            yield f"{escape(one['name'])} ({escape(one['id'])}): {', '.join(_facts(one))}"
        else:
            yield f"[red]{escape(one['name'])} ({escape(one['id'])}): {escape(one['cause'])}[/]"

    if (per_call_j := found.get("energy_per_call_j")) is not None:
        yield f"{per_call_j:.2f} J per call"


def power(found: dict[str, Any] | None) -> Iterator[str]:
    """A line where a profile is in force, or a battery is there."""
    if found is None:
        return
    words = list[str]()
    if found["profile"]:
        words.append(f"profile {escape(found['profile'])}")
    if found["why"]:
        words[-1] += f" ({escape(found['why'])})"
    if found["battery_left_ratio"] is not None:
        words.append(f"battery {found['battery_left_ratio']:.0%}")
    if words:
        yield ", ".join(words)


def _facts(one: dict[str, Any]) -> Iterator[str]:
    """What it says, without what it does not."""
    if one["utilisation_ratio"] is not None:
        yield f"{one['utilisation_ratio']:.0%} busy"
    if one["memory_total_bytes"] is not None:
        used, total = one["memory_used_bytes"], one["memory_total_bytes"]
        yield f"{size(used)} of {size(total)} used"
    if one["temperature_c"] is not None:
        yield f"{one['temperature_c']:.0f} °C"
    if one["power_w"] is not None:
        yield f"{one['power_w']:.1f} W"
    if one["clock_hz"] is not None:
        yield f"{one['clock_hz'] / 1e6:.0f} MHz"
    if one["mode"]:
        yield f"mode {escape(one['mode'])}"
    for reason in one["throttled"] or ():
        yield f"[yellow]slowed: {reason}[/]"
