"""Without a control group to write, a child is held by what needs no rights, and that is said."""

import os
from pathlib import Path

import pytest

from agent.host.cells import Cells
from agent.host.limits import Limits
from tests.host.children import MIB, children
from tests.host.lowly import REFUSED, as_nobody, child, take

ROOMY = 256 * MIB


def no_groups(tmp_path: Path) -> Cells:
    """A machine that has none."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/\n")
    (proc / "self/mountinfo").write_text("23 1 0:5 / /proc rw - proc proc rw\n")
    (proc / "swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
    return Cells(tmp_path)


def test_memory_over_the_limit_is_refused_to_that_child_alone(tmp_path: Path) -> None:
    cells = no_groups(tmp_path)
    assert cells.controllers == frozenset()
    held = cells.open("leaky", Limits(memory_bytes_max=ROOMY))
    free = cells.open("sound", Limits())
    with children(2) as (leak, other):
        held.admit(leak.pid)
        free.admit(other.pid)
        assert leak.tell(f"take {2 * ROOMY}") == "refused"
        assert leak.tell(f"take {ROOMY // 2}") == "done"
        assert other.tell(f"take {2 * ROOMY}") == "done"
        held.change(Limits(memory_bytes_max=4 * ROOMY))
        assert leak.tell(f"take {2 * ROOMY}") == "done"
        held.change(Limits())
        assert leak.tell(f"take {4 * ROOMY}") == "done"
    assert free.shortfalls == ()


def test_affinity_stands_in_for_a_set(tmp_path: Path) -> None:
    cell = no_groups(tmp_path).open("sound", Limits((0,)))
    with children(1) as (one,):
        assert one.tell("thread") == "done"
        cell.admit(one.pid)
        assert one.tell("thread") == "done"
        tasks = [int(task.name) for task in Path(f"/proc/{one.pid}/task").iterdir()]
        assert [os.sched_getaffinity(task) for task in tasks] == [{0}] * 3
        cell.change(Limits())
        assert os.sched_getaffinity(one.pid) == os.sched_getaffinity(0)


def test_a_process_that_has_a_dead_childs_id_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = no_groups(tmp_path).open("images", Limits())
    with children(1) as (one,):
        cell.admit(one.pid)
        monkeypatch.setattr("agent.host.cells.started", lambda _: -1)  # not when the child did
        cell.change(Limits(klass="batch"))
        assert os.sched_getscheduler(one.pid) == os.SCHED_OTHER


def test_a_kernel_without_groups_and_swap_is_served(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    cell = Cells(tmp_path).open("sound", Limits(memory_bytes_max=ROOMY))
    (text,) = cell.shortfalls
    assert "no hierarchy of control groups has it" in text


def test_what_stands_in_is_said(tmp_path: Path) -> None:
    cell = no_groups(tmp_path).open("images", Limits((0,), 0.5, ROOMY))
    memory, share, cpus = cell.shortfalls
    assert memory.startswith("domain images: memory_bytes_max: RLIMIT_DATA stands in")
    assert share.startswith("domain images: cpu_share: its class alone decides")
    assert cpus.startswith("domain images: cpus: affinity stands in")
    for text in cell.shortfalls:
        assert "no hierarchy of control groups has it; run the agent as" in text
    cell.change(Limits(klass="batch"))
    assert cell.shortfalls == ()


def test_processors_that_are_not_there_are_said(tmp_path: Path) -> None:
    cell = no_groups(tmp_path).open("images", Limits((0, 4096)))
    assert "cpus: 4096 cannot be given, the agent itself has 0" in cell.shortfalls[1]
    with children(1) as (one,):
        cell.admit(one.pid)
        assert os.sched_getaffinity(one.pid) == {0}


def own_data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("VmData:")]
    return 1024 * int(kib)


def test_a_user_without_rights_takes_the_way_without_groups() -> None:
    def agent() -> dict[str, object]:
        cells = Cells()
        # What is forked here begins with what this process has.
        cell = cells.open("images", Limits((0,), 0.5, own_data_bytes() + ROOMY, "batch"))

        def classed() -> int:
            score = int(Path("/proc/self/oom_score_adj").read_text())
            idle = os.sched_getscheduler(0) == os.SCHED_IDLE
            return 0 if idle and score >= 900 and os.sched_getaffinity(0) == {0} else 1

        return {
            "controllers": sorted(cells.controllers),
            "leak": child(lambda: take(2 * ROOMY), cell.admit),
            "within": child(lambda: take(ROOMY // 2), cell.admit),
            "classed": child(classed, cell.admit),
            "free": child(lambda: take(2 * ROOMY), lambda _: None),
            "shortfalls": cell.shortfalls,
        }

    found = as_nobody(agent)
    texts = found.pop("shortfalls")
    assert found == {"controllers": [], "leak": REFUSED, "within": 0, "classed": 0, "free": 0}
    assert isinstance(texts, list)
    assert len(texts) == 3
    assert "Permission denied" in texts[0] or "no hierarchy" in texts[0]


def test_going_up_again_without_the_right_to_is_said() -> None:
    def agent() -> dict[str, object]:
        cell = Cells().open("images", Limits(klass="batch"))

        def change(pid: int) -> None:
            cell.admit(pid)
            cell.change(Limits(klass="realtime"))

        child(lambda: 0, change)
        said = cell.shortfalls
        child(lambda: 0, cell.admit)
        cell.change(Limits(klass="realtime"))
        return {"said": said, "next": cell.shortfalls}

    found = as_nobody(agent)
    assert found["next"] == []
    assert isinstance(found["said"], list)
    (text,) = found["said"]
    assert text.startswith("domain images: class stays as it was for the children that run: ")
    assert text.endswith("LimitNICE=+0 in the unit allows it at once")
