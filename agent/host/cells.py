"""Cells: what keeps a domain's children within their limits, by the best means this machine has.

Control groups where they can be made, v2 or v1, controller by controller; where not, what a process
may do to its children without rights: see `rlimits`. The scheduling class and the order in which
the kernel ends processes when memory is short are set in any case.

Limits  : a group per domain and one per child that lives; THREADS_MAX (group) threads in a child.
Recovery: groups of an agent that was killed are removed when the next one starts, together with
          children that outlived it; those of an agent that lives are not touched.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, ENODEV
from pathlib import Path
from typing import NamedTuple

from agent.host import cgroup1, cgroup2, scheduling
from agent.host.group import CONTROLLERS, Dialect, Group, Refused
from agent.host.groups import Tree, lines, name, places, started, sweep
from agent.host.limits import Limits
from agent.host.rlimits import hold_memory
from agent.host.shortfalls import NOT_THERE, SWAP_KNOBS, SWAPPED, shortfalls

log = logging.getLogger("cells")


class _Machine(NamedTuple):
    """What is the same for all domains: the agent's processors, and why a controller is not had."""

    cpus: frozenset[int]
    swaps: bool
    refused: Refused


class _Admitted(NamedTuple):
    """When a child started, in ticks since the boot, and what its groups refused."""

    at: int | None
    refused: Refused


class Cells:
    """All of this agent. Made before any child, since v2 has the agent move: see `cgroup2`."""

    def __init__(self, root: Path = Path("/"), tree: Tree | None = None) -> None:
        """`root` is where proc is mounted, for tests, and `tree` what reaches the groups."""
        self._tree = tree or Tree()
        self._opened = 0
        self._closed = deque[Group]()  # that were still in use; cells put theirs in, in any thread
        self._dialect, refused = _means(self._tree, root)
        swaps = lines(root / "proc/swaps")[1:]
        self._machine = _Machine(frozenset(os.sched_getaffinity(0)), bool(swaps), refused)
        if self._dialect:
            log.info("limits by control groups: %s", ", ".join(sorted(self._dialect.bases)))
        self._sweep()

    @property
    def controllers(self) -> frozenset[str]:
        """Those of the kernel's that are at our disposal."""
        return frozenset(self._dialect.bases if self._dialect else ())

    def open(self, domain: str, limits: Limits) -> "Cell":
        """Room for the children of one domain."""
        self._sweep()
        self._opened += 1
        group = None
        if self._dialect:
            group = Group(self._tree, self._dialect, name(self._opened, domain))
        return Cell(domain, limits, group, self._machine, self._closed.append)

    def _sweep(self) -> None:
        for _ in range(len(self._closed)):
            group = self._closed.popleft()
            if not group.close():
                self._closed.append(group)
        for base in set(self._dialect.bases.values() if self._dialect else ()):
            sweep(self._tree, base)


def _means(tree: Tree, root: Path) -> tuple[Dialect | None, Refused]:
    """The groups to use, and why a controller cannot be had. One is in v2 or in v1, never both."""
    refused: Refused = {one: OSError(ENODEV, NOT_THERE) for one in CONTROLLERS}
    found = places(root)
    for place in found:
        if place.mount.v2:
            dialect, why = cgroup2.delegated(tree, place.folder)
            refused |= why
            if dialect.bases:
                return dialect, _without(refused, dialect)
    bases = {}
    for place in found:
        for controller in CONTROLLERS & place.mount.controllers:
            if tree.writable(place.folder):
                bases[controller] = place.folder
            else:
                refused[controller] = OSError(EACCES, os.strerror(EACCES), str(place.folder))
    dialect = cgroup1.dialect(tree, bases)
    return (dialect if bases else None), _without(refused, dialect)


def _without(refused: Refused, dialect: Dialect) -> Refused:
    return {one: error for one, error in refused.items() if one not in dialect.bases}


class Cell:
    """The children of one domain. One thread calls it."""

    def __init__(
        self,
        domain: str,
        limits: Limits,
        group: Group | None,
        machine: _Machine,
        in_use: Callable[[Group], None],
    ) -> None:
        """`in_use` is told of groups that cannot be removed yet."""
        self._domain = domain
        self._limits = limits
        self._group = group
        self._machine = machine
        self._in_use = in_use
        self._pids: dict[int, _Admitted] = {}
        self._refused: Refused = {}
        self._pinned = False
        self.change(limits)

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What cannot be enforced for real: what, why, what to do. To be read after each call."""
        absent = self._group.absent if self._group else set()
        found = shortfalls(self._limits, self._refused, self._machine.cpus)
        if self._machine.swaps and self._holds("memory") and absent & SWAP_KNOBS:
            found.append(SWAPPED)
        return tuple(f"domain {self._domain}: {text}" for text in found)

    def admit(self, pid: int) -> None:
        """Confine a child, before it loads anything; threads it starts later are confined too.

        One that is gone already is passed over: whoever waits for it learns that.
        """
        self._forget()
        if pid not in self._pids:
            with suppress(ProcessLookupError):
                refused = self._group.admit(pid, self._limits) if self._group else Refused()
                self._pids[pid] = _Admitted(started(pid), refused)
        self.change(self._limits)

    def oom_kills(self) -> int:
        """Children ended by the kernel for want of memory; 0 where no group counts them."""
        return self._group.oom_kills() if self._group else 0

    def change(self, limits: Limits) -> None:
        """Other limits from now on, for those that run too."""
        self._forget()
        self._limits = limits
        self._refused = dict(self._machine.refused)
        if self._group:
            cpus = None if limits.cpus is None else sorted(self._cpus())
            self._refused |= self._group.limit(limits, cpus)
        for pid, admitted in self._pids.items():
            self._refused |= admitted.refused
            with suppress(ProcessLookupError):
                self._confine(pid)

    def close(self) -> None:
        """The children have ended: so do the groups. Where one still dies, they go later."""
        if self._group and not self._group.close():
            self._in_use(self._group)
        self._group = None

    def _forget(self) -> None:
        """Those that are gone: their ids may be others' by now."""
        self._pids = {pid: one for pid, one in self._pids.items() if started(pid) == one.at}

    def _confine(self, pid: int) -> None:
        """What holds in any case, and what stands in for a group."""
        klass = self._limits.klass
        memory = None if self._holds("memory") else self._limits.memory_bytes_max
        self._try("class", lambda: scheduling.classify(pid, klass))
        self._try("oom", lambda: scheduling.expose(pid, klass))
        self._try("rlimit", lambda: hold_memory(pid, memory))
        if not self._holds("cpuset") and (self._limits.cpus or self._pinned):
            self._pinned = True
            self._try("affinity", lambda: scheduling.pin(pid, self._cpus()))

    def _try(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except ProcessLookupError:
            raise
        except OSError as error:
            self._refused[what] = error

    def _cpus(self) -> frozenset[int]:
        asked = self._machine.cpus.intersection(self._limits.cpus or ())
        return asked or self._machine.cpus

    def _holds(self, controller: str) -> bool:
        there = self._group is not None and controller in self._group.controllers
        return there and controller not in self._refused
