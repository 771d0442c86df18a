"""Limits by control groups v1, on the real kernel."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.cells import Cells
from agent.host.groups import Tree, places
from agent.host.limits import Limits
from tests.host.children import MIB, Child, children, needs_v1, ran_s, v1_places
from tests.outside import until

pytestmark = pytest.mark.usefixtures("v1")
ROOMY = 64 * MIB


@pytest.fixture
def v1() -> None:
    needs_v1()


@pytest.fixture
def cells() -> Iterator[Cells]:
    yield Cells()
    until(lambda: not ours(), "no group is left behind")


def ours() -> list[Path]:
    """Groups of this process's."""
    mark = f"holdfast-{os.getpid()}-*"
    return [one for base in set(v1_places().values()) for one in base.glob(mark)]


def groups_of(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {names: path for _, names, path in (row.split(":", 2) for row in rows)}


def test_all_is_enforced_here(cells: Cells) -> None:
    cell = cells.open("sound", Limits((0,), 0.5, ROOMY, "realtime"))
    assert cells.controllers == {"cpu", "cpuset", "memory", "pids"}
    assert cell.shortfalls == ()
    cell.close()


def test_memory_over_the_limit_ends_that_child_alone(cells: Cells) -> None:
    limits = Limits(memory_bytes_max=ROOMY)
    leaky, sound = cells.open("leaky", limits), cells.open("sound", limits)
    with children(3) as (leak, sibling, other):
        for cell, child in ((leaky, leak), (leaky, sibling), (sound, other)):
            cell.admit(child.pid)
        assert leaky.shortfalls == ()
        assert leak.tell(f"take {4 * ROOMY}") == ""
        assert leak.status() == -signal.SIGKILL
        assert (leaky.oom_kills(), sound.oom_kills()) == (1, 0)
        assert sibling.tell(f"take {ROOMY // 4}") == "done"
        assert other.tell(f"take {ROOMY // 4}") == "done"
        with children(1) as (next_one,):
            leaky.admit(next_one.pid)  # the dead one's group goes
            assert leaky.oom_kills() == 1
            assert next_one.tell(f"take {4 * ROOMY}") == ""
            assert leaky.oom_kills() == 2
    leaky.close()
    sound.close()


def test_nothing_is_written_as_nothing() -> None:
    """Of no bytes at all the kernel takes no notice: what stood there would go on to hold."""
    tree, group = Tree(), v1_places()["cpuset"] / f"holdfast-{os.getpid()}-0-1-empty"
    tree.make(group)
    try:
        for value in ("0", ""):
            tree.write(group / "cpuset.cpus", value)
            assert tree.read(group / "cpuset.cpus") == value
    finally:
        tree.remove(group)


def test_a_limit_can_be_raised_and_lifted_while_a_child_runs(cells: Cells) -> None:
    cell = cells.open("images", Limits(memory_bytes_max=ROOMY))
    with children(1) as (child,):
        cell.admit(child.pid)
        cell.change(Limits(memory_bytes_max=4 * ROOMY))
        assert child.tell(f"take {2 * ROOMY}") == "done"
        cell.change(Limits(memory_bytes_max=ROOMY))
        (text,) = cell.shortfalls
        assert text.endswith(
            "a child has more than that already: restart the domain, or lower less"
        )
        assert child.tell(f"take {ROOMY}") == "refused"
        cell.change(Limits())
        assert child.tell(f"take {4 * ROOMY}") == "done"
        assert cell.shortfalls == ()
    cell.close()


def busy(child: Child) -> None:
    assert child.tell("spin") == "done"


def spent(*busy_ones: Child) -> list[float]:
    """What each got, from now until they had 2 s of one processor together."""
    begun = [ran_s(one.pid) for one in busy_ones]

    def got() -> list[float]:
        return [ran_s(one.pid) - at for one, at in zip(busy_ones, begun, strict=True)]

    return until(lambda: got() if sum(got()) > 2 else None, "2 s were spent") or []


def test_shares_split_a_processor(cells: Cells) -> None:
    more = cells.open("more", Limits((0,), 0.8))
    less = cells.open("less", Limits((0,), 0.2))
    with children(2) as (one, two):
        more.admit(one.pid)
        less.admit(two.pid)
        busy(one)
        busy(two)
        much, little = spent(one, two)
        assert much > 2 * little
        more.change(Limits((0,), 0.2))
        less.change(Limits((0,), 0.8))
        little, much = spent(one, two)
        assert much > 2 * little
    more.close()
    less.close()


def test_batch_takes_what_is_left_and_is_never_without(cells: Cells) -> None:
    first = cells.open("sound", Limits((0,), klass="realtime"))
    last = cells.open("images", Limits((0,), klass="batch"))
    with children(2) as (one, two):
        first.admit(one.pid)
        last.admit(two.pid)
        busy(one)
        busy(two)
        much, little = spent(one, two)
        assert much > 8 * little
        began = ran_s(two.pid)
        until(lambda: ran_s(two.pid) > began, "it runs all the same")
    first.close()
    last.close()


def test_a_set_of_processors_holds_whatever_the_child_does(cells: Cells) -> None:
    cell = cells.open("sound", Limits((0,)))
    with children(1) as (child,):
        cell.admit(child.pid)
        every = set(range(os.cpu_count() or 1))
        os.sched_setaffinity(child.pid, every)  # it tries to get out
        assert os.sched_getaffinity(child.pid) == {0}
        cell.change(Limits())
        assert os.sched_getaffinity(child.pid) == os.sched_getaffinity(0)
    cell.close()


def test_threads_that_were_there_and_those_that_come_are_confined(cells: Cells) -> None:
    cell = cells.open("sound", Limits((0,), klass="batch"))
    with children(1) as (child,):
        assert child.tell("thread") == "done"
        cell.admit(child.pid)
        assert child.tell("thread") == "done"
        tasks = [int(one.name) for one in Path(f"/proc/{child.pid}/task").iterdir()]
        assert len(tasks) == 3
        for task in tasks:
            assert groups_of(task) == groups_of(child.pid)
            assert os.sched_getscheduler(task) == os.SCHED_IDLE
        assert all("holdfast-" in groups_of(child.pid)[c] for c in ("cpu", "memory"))
    cell.close()


def test_groups_in_use_when_the_cell_closes_go_later(cells: Cells) -> None:
    cell = cells.open("sound", Limits())
    with children(1) as (child,):
        cell.admit(child.pid)
        cell.close()
        assert ours()
    until(lambda: cells.open("next", Limits()).close() or not ours(), "they went")


def test_a_child_that_is_gone_is_passed_over(cells: Cells) -> None:
    cell = cells.open("sound", Limits(memory_bytes_max=ROOMY))
    with children(1) as (child,):
        pass
    cell.admit(child.pid)
    assert cell.shortfalls == ()
    cell.close()


def test_this_process_is_found_in_every_hierarchy() -> None:
    for place in places(Path("/")):
        assert str(os.getpid()) in (place.folder / "cgroup.procs").read_text().split()


def test_admitting_again_changes_nothing(cells: Cells) -> None:
    cell = cells.open("sound", Limits(memory_bytes_max=ROOMY))
    with children(1) as (child,):
        cell.admit(child.pid)
        at = groups_of(child.pid)
        cell.admit(child.pid)
        assert groups_of(child.pid) == at
        assert child.tell(f"take {4 * ROOMY}") == ""
        assert cell.oom_kills() == 1
    cell.close()


def test_a_child_next_to_one_that_has_too_much_is_held_when_that_is_gone(cells: Cells) -> None:
    cell = cells.open("images", Limits())
    with children(1) as (fat,):
        cell.admit(fat.pid)
        assert fat.tell(f"take {4 * ROOMY}") == "done"
        cell.change(Limits(memory_bytes_max=ROOMY))
        assert cell.shortfalls != ()
    with children(1) as (child,):
        cell.admit(child.pid)
        assert cell.shortfalls == ()
        assert child.tell(f"take {4 * ROOMY}") == ""
    cell.close()
