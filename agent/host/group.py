"""One domain in the control groups: v1 and v2 differ in their knobs alone.

Limits  : THREADS_MAX threads in a child, where the kernel counts them.
Recovery: a group that is in use when it should go is removed later; those of an agent that was
          killed, at the next start of one.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from agent.host.groups import Tree, discard
from agent.host.limits import Limits

CONTROLLERS = frozenset({"cpu", "cpuset", "memory", "pids"})
THREADS_MAX = 1024  # an engine starts one per processor and a few; more is a leak


class Knob(NamedTuple):
    """A file of a group; an `extra` one is left out where the kernel has none."""

    controller: str
    file: str
    value: str
    extra: bool = False


class Dialect(Struct, frozen=True):
    """How a version says it: its knobs, in the order in which they are to be written.

    `bases` are the groups to make ours in, by controller; `domain` makes the knobs of a domain out
    of its limits and the processors it shall have, `child` those of each child.
    """

    bases: dict[str, Path]
    domain: Callable[[Limits, list[int] | None], list[Knob]]
    child: Callable[[Limits], list[Knob]]
    ooms: str  # the file that counts, as `oom_kill N`, processes ended for want of memory


# What was refused, by controller.
Refused = dict[str, OSError]


class Group:
    """A domain's groups, one in each hierarchy, with one below for each child that lives."""

    def __init__(self, tree: Tree, dialect: Dialect, name: str) -> None:
        self._tree = tree
        self._dialect = dialect
        self._name = name
        self._children: dict[str, int] = {}  # processes ended for want of memory, as last seen
        self._born = 0
        self._ooms = 0  # of children whose groups are gone
        self.absent: set[str] = set()  # extra knobs that this kernel does not have

    @property
    def controllers(self) -> frozenset[str]:
        """Those it has a group of."""
        return frozenset(self._dialect.bases)

    def limit(self, limits: Limits, cpus: list[int] | None) -> Refused:
        """Make the groups if there are none; set, or change, what holds for all of them."""
        refused: Refused = {}
        for controller, base in self._dialect.bases.items():
            self._make(base / self._name, controller, refused)
        self._turn(self._dialect.domain(limits, cpus), "", refused)
        for child in self._children:
            self._turn(self._dialect.child(limits), child, refused)
        return refused

    def admit(self, pid: int, limits: Limits) -> Refused:
        """Put a process with all its threads in a group of its own.

        Raises ProcessLookupError: it is gone.
        """
        self._forget()
        self._born += 1
        child, refused = str(self._born), Refused()
        knobs = self._dialect.child(limits)
        for controller in {knob.controller for knob in knobs}:
            self._make(self._folder(controller) / child, controller, refused)
        self._children[child] = 0
        self._turn(knobs, child, refused)
        for folder, controllers in self._ends(child, {knob.controller for knob in knobs}).items():
            try:
                self._tree.write(folder / "cgroup.procs", str(pid))
            except ProcessLookupError:
                raise
            except OSError as error:
                refused.update(dict.fromkeys(controllers, error))
        return refused

    def oom_kills(self) -> int:
        """Processes of the domain that the kernel ended for want of memory."""
        return self._ooms + sum(map(self._count, self._children))

    def close(self) -> bool:
        """Remove the groups; whether all are gone: those that are in use stay."""
        self._forget()
        folders = {base / self._name for base in self._dialect.bases.values()}
        return discard(self._tree, folders)

    def _forget(self) -> None:
        """Remove the groups of children that are gone, and keep what they counted."""
        for child in list(self._children):
            self._count(child)
            folders = {self._folder(c) / child for c in self._dialect.bases}
            if discard(self._tree, folders):
                self._ooms += self._children.pop(child)

    def _ends(self, child: str, own: set[str]) -> dict[Path, list[str]]:
        """Where a child is to be in each hierarchy, and which controllers that serves.

        In one that has a group per child, there: it holds what the domain's group does too.
        """
        found: dict[Path, list[str]] = {}
        apart = {self._dialect.bases[one] for one in own}
        for controller, base in self._dialect.bases.items():
            folder = base / self._name / child if base in apart else base / self._name
            found.setdefault(folder, []).append(controller)
        return found

    def _count(self, child: str) -> int:
        if "memory" in self._dialect.bases:
            with suppress(FileNotFoundError):  # its group is gone already
                rows = self._tree.read(self._folder("memory") / child / self._dialect.ooms)
                counts = dict(row.split() for row in rows.splitlines())
                self._children[child] = int(counts.get("oom_kill", 0))
        return self._children[child]

    def _folder(self, controller: str) -> Path:
        return self._dialect.bases[controller] / self._name

    def _make(self, folder: Path, controller: str, refused: Refused) -> None:
        try:
            self._tree.make(folder)
        except FileExistsError:
            pass
        except OSError as error:
            refused[controller] = error

    def _turn(self, knobs: list[Knob], child: str, refused: Refused) -> None:
        for controller, file, value, extra in knobs:
            if controller in refused:
                continue
            try:
                self._tree.write(self._folder(controller) / child / file, value)
            except FileNotFoundError as error:
                if extra:
                    self.absent.add(file)
                else:
                    refused[controller] = error
            except OSError as error:
                refused[controller] = error
