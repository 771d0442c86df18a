"""Control groups v2: one hierarchy, in the part of it that was delegated to this agent.

A group has processes or hands controllers on to those in it, never both. So the agent moves to a
leaf `holdfast` of the group it was started in, if it finds itself there, and the domains' groups
lie beside it. Under systemd that takes `Delegate=yes`; with `DelegateSubgroup=holdfast` the agent
is in the leaf from its start.
"""

import os
from contextlib import suppress
from errno import EBUSY
from pathlib import Path

from agent.host.group import CONTROLLERS, THREADS_MAX, Dialect, Knob, Refused
from agent.host.groups import Tree
from agent.host.limits import Limits

LEAF = "holdfast"
_OF_CHILD = frozenset({"memory", "pids"})
_WEIGHT_BETWEEN = (1, 10_000)
_WEIGHT_USUAL = 100  # of a group that nobody set


def delegated(tree: Tree, own: Path) -> tuple[Dialect, Refused]:
    """Make `own`, the group of this process, ready for domains; what was refused, by controller."""
    base = own.parent if own.name == LEAF else own
    refused = Refused()
    held: dict[str, Path] = {}
    for controller in sorted(_there(tree, base)):
        try:
            _hand_on(tree, base, controller)
        except OSError as error:
            refused[controller] = error
        else:
            held[controller] = base
    handed_on = sorted(held.keys() & _OF_CHILD)

    def domain(limits: Limits, cpus: list[int] | None) -> list[Knob]:
        control = [Knob(one, "cgroup.subtree_control", f"+{one}") for one in handed_on]
        return [knob for knob in (*control, *_domain(limits, cpus)) if knob.controller in held]

    def child(limits: Limits) -> list[Knob]:
        return [knob for knob in _child(limits) if knob.controller in held]

    return Dialect(held, domain, child, "memory.events"), refused


def _there(tree: Tree, base: Path) -> frozenset[str]:
    try:
        return CONTROLLERS.intersection(tree.read(base / "cgroup.controllers").split())
    except OSError:  # of another namespace: none of it is ours
        return frozenset()


def _hand_on(tree: Tree, base: Path, controller: str) -> None:
    control = base / "cgroup.subtree_control"
    if controller in tree.read(control).split():
        return
    try:
        tree.write(control, f"+{controller}")
    except OSError as error:
        if error.errno != EBUSY:
            raise
        _from_leaf(tree, base, controller)


def _from_leaf(tree: Tree, base: Path, controller: str) -> None:
    """Hand it on with this process out of the way; it comes back if that is not enough."""
    leaf, own = base / LEAF, str(os.getpid())
    if leaf not in tree.below(base):
        tree.make(leaf)
    tree.write(leaf / "cgroup.procs", own)
    try:
        tree.write(base / "cgroup.subtree_control", f"+{controller}")
    except OSError:  # other processes are in it
        with suppress(OSError):
            tree.write(base / "cgroup.procs", own)
            tree.remove(leaf)
        raise


def _domain(limits: Limits, cpus: list[int] | None) -> list[Knob]:
    low, high = _WEIGHT_BETWEEN
    weight = min(high, max(low, round(limits.weight * _WEIGHT_USUAL)))
    idle = [Knob("cpu", "cpu.idle", "1", extra=True)] if limits.idle else []
    return [
        Knob("cpuset", "cpuset.cpus", ",".join(map(str, cpus or ()))),  # none: as the agent
        Knob("cpu", "cpu.idle", "0", extra=True),  # since Linux 5.15; while it is 1, no weight
        Knob("cpu", "cpu.weight", str(weight)),
        *idle,
    ]


def _child(limits: Limits) -> list[Knob]:
    most = "max" if limits.memory_bytes_max is None else str(limits.memory_bytes_max)
    return [
        Knob("memory", "memory.oom.group", "1", extra=True),
        Knob("memory", "memory.swap.max", "max" if most == "max" else "0", extra=True),
        Knob("memory", "memory.max", most),
        Knob("pids", "pids.max", str(THREADS_MAX)),
    ]
