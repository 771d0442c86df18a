"""Scheduling class and the order of being ended, on real processes; no rights are needed."""

import os
from pathlib import Path

import pytest

from agent.host import scheduling
from agent.host.limits import Class
from tests.host.children import children, ran_s
from tests.host.lowly import as_nobody, child
from tests.outside import until


@pytest.mark.parametrize(
    ("klass", "policy", "nice"),
    [
        ("realtime", os.SCHED_OTHER, 0),
        ("interactive", os.SCHED_OTHER, 5),
        ("batch", os.SCHED_IDLE, 19),
    ],
)
def test_all_threads_have_the_class_now_and_later(klass: Class, policy: int, nice: int) -> None:
    with children(1) as (one,):
        assert one.tell("thread") == "done"
        scheduling.classify(one.pid, klass)
        assert one.tell("thread") == "done"
        tasks = [int(task.name) for task in Path(f"/proc/{one.pid}/task").iterdir()]
        assert len(tasks) == 3
        assert {os.sched_getscheduler(task) for task in tasks} == {policy}
        assert {os.getpriority(os.PRIO_PROCESS, task) for task in tasks} == {nice}


def test_batch_gives_way_without_a_group() -> None:
    with children(2) as (first, last):
        scheduling.classify(first.pid, "realtime")
        scheduling.classify(last.pid, "batch")
        for one in (first, last):
            scheduling.pin(one.pid, frozenset({0}))
            assert one.tell("spin") == "done"
        begun = ran_s(first.pid), ran_s(last.pid)
        until(lambda: ran_s(first.pid) > begun[0] + 2, "2 s were spent")
        assert ran_s(last.pid) - begun[1] < 0.25
        until(lambda: ran_s(last.pid) > begun[1], "it runs all the same")


def test_children_are_ended_before_the_agent_and_batch_first() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    found = []
    classes: list[Class] = ["realtime", "interactive", "batch"]
    with children(1) as (one,):
        for klass in classes:
            scheduling.expose(one.pid, klass)
            found.append(int(Path(f"/proc/{one.pid}/oom_score_adj").read_text()))
    assert [own, *found] == sorted({own, *found})


def test_a_user_without_rights_can_give_way_to_others() -> None:
    def act() -> dict[str, object]:
        def confine(pid: int) -> None:
            scheduling.classify(pid, "batch")
            scheduling.expose(pid, "batch")

        return {"policy": child(lambda: os.sched_getscheduler(0), confine)}

    assert as_nobody(act) == {"policy": os.SCHED_IDLE}


def test_a_process_that_is_gone_is_told() -> None:
    with children(1) as (one,):
        pass
    for act in (scheduling.classify, scheduling.expose):
        with pytest.raises(ProcessLookupError):
            act(one.pid, "batch")
