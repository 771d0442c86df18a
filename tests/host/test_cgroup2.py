"""Limits by control groups v2: on a tree that keeps the kernel's rules, and on a real one."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.host.cells import Cells
from agent.host.groups import name, places
from agent.host.limits import Limits
from tests.host.children import MIB, Child, children
from tests.host.fake_cgroup2 import CONTROLLERS, FakeCgroup2
from tests.outside import ROOT

UNIT = "system.slice/holdfast.service"
Make = Callable[..., FakeCgroup2]


@pytest.fixture
def machine(tmp_path: Path) -> Make:
    def make(
        own: str = UNIT, controllers: str = CONTROLLERS, absent: frozenset[str] = frozenset()
    ) -> FakeCgroup2:
        return FakeCgroup2(tmp_path, own, controllers, absent)

    return make


@pytest.fixture
def child() -> Iterator[Child]:
    """A real process; the fake's groups hold its id."""
    with children(1) as (one,):
        yield one


def said(group: Path) -> dict[str, str]:
    return {one.name: one.read_text() for one in group.iterdir() if one.is_file()}


def groups(fake: FakeCgroup2) -> list[Path]:
    return sorted(fake.point.rglob("holdfast-*"))


def test_the_agent_moves_to_a_leaf_and_hands_controllers_on(machine: Make) -> None:
    fake = machine()
    cells = Cells(fake.root, fake)
    assert cells.controllers == {"cpu", "cpuset", "memory", "pids"}
    assert fake.of(os.getpid()) == fake.own / "holdfast"
    assert said(fake.own)["cgroup.subtree_control"] == "cpu cpuset memory pids"
    again = Cells(fake.root, fake)  # as it would be after a start in the same unit
    assert again.controllers == cells.controllers


def test_an_agent_started_in_the_leaf_stays_in_it(machine: Make) -> None:
    fake = machine(f"{UNIT}/holdfast")
    assert Cells(fake.root, fake).controllers == {"cpu", "cpuset", "memory", "pids"}
    assert fake.of(os.getpid()) == fake.own
    Cells(fake.root, fake).open("sound", Limits())
    assert groups(fake)[0].parent == fake.own.parent


def test_in_the_root_group_it_stays_where_it_is(machine: Make) -> None:
    fake = machine("")
    assert Cells(fake.root, fake).controllers == {"cpu", "cpuset", "memory", "pids"}
    assert fake.of(os.getpid()) == fake.point


def test_limits_stand_in_the_groups_of_domain_and_child(machine: Make, child: Child) -> None:
    fake = machine()
    cell = Cells(fake.root, fake).open("sound", Limits((0,), 0.5, 64 * MIB, "realtime"))
    fake.start(child.pid)
    cell.admit(child.pid)
    domain = said(groups(fake)[0])
    assert (domain["cpu.weight"], domain["cpu.idle"], domain["cpuset.cpus"]) == ("50", "0", "0")
    assert domain["cgroup.subtree_control"] == "memory pids"
    assert domain["memory.max"] == "max"  # the limit is of each child
    own = said(fake.of(child.pid))
    assert fake.of(child.pid).parent == groups(fake)[0]
    assert own["memory.max"] == str(64 * MIB)
    assert (own["memory.swap.max"], own["memory.oom.group"], own["pids.max"]) == ("0", "1", "1024")
    assert cell.shortfalls == ()


def test_limits_change_while_children_run(machine: Make, child: Child) -> None:
    fake = machine()
    cell = Cells(fake.root, fake).open("images", Limits(klass="batch"))
    fake.start(child.pid)
    cell.admit(child.pid)
    assert said(groups(fake)[0])["cpu.idle"] == "1"
    assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
    cell.change(Limits((0,), 0.3, 32 * MIB, "batch"))
    domain = said(groups(fake)[0])
    assert (domain["cpu.idle"], domain["cpu.weight"], domain["cpuset.cpus"]) == ("0", "30", "0")
    assert said(fake.of(child.pid))["memory.max"] == str(32 * MIB)
    cell.change(Limits(klass="realtime"))
    domain = said(groups(fake)[0])
    assert (domain["cpu.weight"], domain["cpuset.cpus"]) == ("100", "")
    own = said(fake.of(child.pid))
    assert (own["memory.max"], own["memory.swap.max"]) == ("max", "max")
    assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
    assert cell.shortfalls == ()


def test_a_kernel_without_idle_groups_gives_batch_the_least_weight(machine: Make) -> None:
    fake = machine(absent=frozenset({"cpu.idle"}))
    cell = Cells(fake.root, fake).open("images", Limits(klass="batch"))
    assert said(groups(fake)[0])["cpu.weight"] == "1"
    assert cell.shortfalls == ()


def test_swap_that_is_not_counted_is_said(machine: Make, child: Child) -> None:
    fake = machine(absent=frozenset({"memory.swap.max"}))
    cell = Cells(fake.root, fake).open("images", Limits(memory_bytes_max=MIB))
    fake.start(child.pid)
    cell.admit(child.pid)
    (text,) = cell.shortfalls
    assert text.startswith("domain images: memory_bytes_max counts no swap")


def test_a_controller_that_is_not_delegated_is_said(machine: Make, child: Child) -> None:
    fake = machine(controllers="memory pids")
    cell = Cells(fake.root, fake).open("sound", Limits((0,), 0.5, 64 * MIB))
    fake.start(child.pid)
    cell.admit(child.pid)
    assert said(fake.of(child.pid))["memory.max"] == str(64 * MIB)
    share, cpus = cell.shortfalls
    assert "cpu_share: its class alone decides what it gets" in share
    assert "cpus: affinity stands in" in cpus
    assert os.sched_getaffinity(child.pid) == {0}


def test_a_group_shared_with_other_processes_cannot_be_used(machine: Make, child: Child) -> None:
    fake = machine()
    fake.start(7)  # the shell it was started from
    cells = Cells(fake.root, fake)
    assert cells.controllers == frozenset()
    assert fake.of(os.getpid()) == fake.own
    assert fake.below(fake.own) == []
    cell = cells.open("sound", Limits(memory_bytes_max=64 * MIB))
    cell.admit(child.pid)
    (text,) = cell.shortfalls
    busy = f"Device or resource busy ({fake.own / 'cgroup.subtree_control'})"
    assert f"because {busy}; run the agent as a systemd unit with Delegate=yes" in text
    assert child.tell(f"take {256 * MIB}") == "refused"


def test_ooms_are_counted_beyond_the_child(machine: Make) -> None:
    fake = machine()
    cell = Cells(fake.root, fake).open("leaky", Limits(memory_bytes_max=MIB))
    for count in range(1, 4):
        with children(1) as (child,):
            fake.start(child.pid)
            cell.admit(child.pid)
            events = fake.of(child.pid) / "memory.events"
            assert cell.oom_kills() == count - 1
            events.write_text("oom 1\noom_kill 1")
            fake.end(child.pid)
            assert cell.oom_kills() == count
    assert len(fake.below(groups(fake)[0])) == 1  # only the last one's
    cell.close()
    assert groups(fake) == []


def test_groups_in_use_go_with_the_next_call(machine: Make, child: Child) -> None:
    fake = machine()
    cells = Cells(fake.root, fake)
    cell = cells.open("sound", Limits())
    fake.start(child.pid)
    cell.admit(child.pid)
    cell.close()
    assert len(groups(fake)) == 1
    fake.end(child.pid)
    cells.open("next", Limits()).close()
    assert groups(fake) == []


def test_a_child_that_is_gone_is_passed_over(machine: Make) -> None:
    fake = machine()
    cell = Cells(fake.root, fake).open("sound", Limits())
    with children(1) as (child,):
        pass
    cell.admit(child.pid)
    assert cell.shortfalls == ()
    cell.close()
    assert groups(fake) == []


def test_leftovers_of_a_dead_agent_go_and_those_of_a_living_one_stay(machine: Make) -> None:
    fake = machine()
    living = fake.own / name(1, "sound")
    with children(1) as (other,):
        dead = fake.own / name(1, "sound").replace(str(os.getpid()), str(other.pid), 1)
    Cells(fake.root, fake)
    for group in (living, dead):
        fake.make(group)
        fake.write(group / "cgroup.subtree_control", "+memory")
        fake.make(group / "1")
    fake.start(7, dead / "1")
    fake.start(8, living / "1")
    Cells(fake.root, fake)
    assert groups(fake) == [living]
    assert fake.killed == [7]


def test_a_group_of_another_namespace_is_not_touched(machine: Make) -> None:
    fake = machine()
    with children(1) as (other,):
        group = fake.own / name(1, "sound").replace(str(os.getpid()), str(other.pid), 1)
    Cells(fake.root, fake)
    fake.make(group)
    (group / "cgroup.procs").write_text("0\n0")  # as the kernel names whom we cannot see
    Cells(fake.root, fake)
    assert groups(fake) == [group]
    assert fake.killed == []


def test_a_domain_of_any_name_is_one_group(machine: Make) -> None:
    fake = machine()
    cell = Cells(fake.root, fake).open("../über uns/", Limits())
    (group,) = groups(fake)
    assert group.parent == fake.own
    cell.close()
    assert groups(fake) == []


@pytest.mark.parametrize(
    ("origin", "path", "seen"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/", "/a/b", "/sys/fs/cgroup/a/b"),
        ("/docker/x", "/docker/x/y", "/sys/fs/cgroup/y"),  # a container without a namespace
        ("/docker/x", "/docker/z", None),  # it was moved out of what is mounted
        ("/..", "/../other", "/sys/fs/cgroup/other"),  # a namespace, seen from inside
    ],
)
def test_the_own_group_is_found_where_it_is_mounted(
    tmp_path: Path, origin: str, path: str, seen: str | None
) -> None:
    own = tmp_path / "proc/self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text(f"1:name=systemd:/q\n0::{path}\n")
    (own / "mountinfo").write_text(
        f"3 1 0:2 {origin} /sys/fs/cgroup rw shared:4 master:1 - cgroup2 cgroup2 rw\n"
    )
    found = [place.folder for place in places(tmp_path)]
    assert found == ([tmp_path / seen.lstrip("/")] if seen else [])


def test_hierarchies_of_v1_have_one_controller_or_several(tmp_path: Path) -> None:
    own = tmp_path / "proc/self"
    own.mkdir(parents=True)
    (own / "cgroup").write_text("4:cpu,cpuacct:/x\n3:memory:/y:z\n2:name=systemd:/q\n")
    (own / "mountinfo").write_text(
        "3 1 0:2 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "4 1 0:3 / /c/with\\040blank rw - cgroup cgroup rw,memory\n"
        "5 1 0:4 / /c/pids rw - cgroup cgroup rw,pids\n"
    )
    found = {str(one.folder.relative_to(tmp_path)) for one in places(tmp_path)}
    assert found == {"c/cpu,cpuacct/x", "c/with blank/y:z"}


# An agent in a group of its own, as systemd would have delegated it.
_AGENT = """
import subprocess, sys
from agent.host.cells import Cells
from agent.host.limits import Limits
cells = Cells()
cell = cells.open("leaky", Limits((0,), 0.5, 64 << 20))
sound = cells.open("sound", Limits(memory_bytes_max=64 << 20))
take = "import sys; sys.stdin.readline(); x = b'x' * {}"
def child(cell, size):
    one = subprocess.Popen([sys.executable, "-c", take.format(size)], stdin=subprocess.PIPE)
    cell.admit(one.pid)
    return one
leak, other = child(cell, 256 << 20), child(sound, 8 << 20)
leak.communicate(b"go")
other.communicate(b"go")
print(leak.returncode, other.returncode, cell.oom_kills(), sound.oom_kills(), cell.shortfalls)
cell.close()
sound.close()
"""


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group of a real hierarchy, handed to nobody else."""
    v2 = [place for place in places(Path("/")) if place.mount.v2]
    if not v2 or not os.access(v2[0].mount.point, os.W_OK):
        pytest.skip("no writable cgroup v2 hierarchy is mounted here")
    group = v2[0].mount.point / f"holdfast.test.{os.getpid()}"
    group.mkdir()
    try:
        there = (group / "cgroup.controllers").read_text().split()
        if missing := {"cpu", "cpuset", "memory", "pids"} - set(there):
            pytest.skip(f"cgroup v2 has no {', '.join(sorted(missing))} here: v1 holds it")
        yield group
    finally:
        if (group / "holdfast").exists():
            (group / "holdfast").rmdir()
        group.rmdir()


def test_a_real_kernel_ends_the_child_over_its_limit_alone(delegated: Path) -> None:
    def enter() -> None:
        (delegated / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-c", _AGENT]
    done = subprocess.run(
        command, preexec_fn=enter, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "-9 0 1 0 ()", done.stderr
    assert [one.name for one in delegated.iterdir() if one.is_dir()] == ["holdfast"]
