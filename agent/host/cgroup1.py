"""Control groups v1: a hierarchy for each controller or two, below the agent's own group in each.

The agent stays where it is: in v1 a group may have processes and groups in it.
"""

from pathlib import Path

from agent.host.group import THREADS_MAX, Dialect, Knob
from agent.host.groups import Tree
from agent.host.limits import Limits

_SHARES_BETWEEN = (2, 262_144)
_SHARES_USUAL = 1024  # of a group that nobody set, and of a process beside groups
_UNLIMITED = "-1"


def dialect(tree: Tree, bases: dict[str, Path]) -> Dialect:
    """The knobs of the controllers that are there."""

    def domain(limits: Limits, cpus: list[int] | None) -> list[Knob]:
        found = _cpu(limits)
        if base := bases.get("cpuset"):
            found += _cpuset(tree, base, cpus)
        return [knob for knob in found if knob.controller in bases]

    def child(limits: Limits) -> list[Knob]:
        return [knob for knob in _child(limits) if knob.controller in bases]

    return Dialect(bases, domain, child, "memory.oom_control")


def _cpu(limits: Limits) -> list[Knob]:
    low, high = _SHARES_BETWEEN
    shares = min(high, max(low, round(limits.weight * _SHARES_USUAL)))
    idle = [Knob("cpu", "cpu.idle", "1", extra=True)] if limits.idle else []
    return [
        Knob("cpu", "cpu.idle", "0", extra=True),  # since Linux 5.15; while it is 1, no shares
        Knob("cpu", "cpu.shares", str(shares)),
        *idle,
    ]


def _cpuset(tree: Tree, base: Path, cpus: list[int] | None) -> list[Knob]:
    """A new set is empty, and takes nobody before it has processors and memory nodes."""
    chosen = ",".join(map(str, cpus)) if cpus else tree.read(base / "cpuset.cpus")
    return [
        Knob("cpuset", "cpuset.mems", tree.read(base / "cpuset.mems")),
        Knob("cpuset", "cpuset.cpus", chosen),
    ]


def _child(limits: Limits) -> list[Knob]:
    most = _UNLIMITED if limits.memory_bytes_max is None else str(limits.memory_bytes_max)
    return [
        # Memory with swap never has the lower limit of the two: out of the way first.
        Knob("memory", "memory.memsw.limit_in_bytes", _UNLIMITED, extra=True),
        Knob("memory", "memory.limit_in_bytes", most),
        Knob("memory", "memory.memsw.limit_in_bytes", most, extra=True),
        Knob("pids", "pids.max", str(THREADS_MAX)),
    ]
