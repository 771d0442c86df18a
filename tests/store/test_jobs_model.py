"""Jobs against a small model (jobs_model.py), by Hypothesis: any calls in any order, crashes
between and in them, reboots; after each step the two must agree, and the store must add up.

HOLDFAST_LONG=1 makes thousands of runs, HOLDFAST_SEED=N those of a failure that was printed.
"""

from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

import pytest
from hypothesis import seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from agent import config
from agent.store import arrivals, jobsteps
from agent.store.arrivals import Limits, New
from agent.store.jobrows import STATES, Answered, Made
from agent.store.jobs import Jobs
from agent.store.tensors import Part
from tests.store.faults.child import LONG
from tests.store.jobs_model import Failure, Model
from tests.store.rig import Rig
from tests.store.test_model import PROFILE, SEED, WORKING

PARTS = 30 if LONG else 1
LIMITS = Limits(jobs_max=3, bytes_max=300_000, result_keep_s=1000.0, attempts_max=3)
SIZES = [10, 9_000, 70_000, 150_000]

names = st.sampled_from(["a", "b", "c", "d"])
whichs = st.integers(0, 11)  # of the jobs there are
sizes = st.lists(st.sampled_from(SIZES), min_size=1, max_size=4)
Call = Callable[[Jobs], Coroutine[Any, Any, Any]]


class Machine(RuleBasedStateMachine):
    """One store's jobs through all that may happen to them."""

    @initialize()
    def begin(self) -> None:
        self.bent = [
            mock.patch.object(arrivals, "STEP_BYTES", 50_000),
            mock.patch.object(jobsteps, "REMOVE_PIECES_MAX", 1),
        ]
        for one in self.bent:
            one.start()
        self.rig = Rig(config.Store(), LIMITS)
        self.rig.open()
        self.model = Model(LIMITS)
        self.count = 0
        self.boots = 0
        self.fuse: tuple[str, int] | None = None

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.end()
            for one in self.bent:
                one.stop()

    def one(self, which: int) -> str:
        """One of the jobs, now and then one that is not there."""
        found = list(self.model.jobs)
        return found[which % len(found)] if found and which < 11 else "nobody"

    def content(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(8, "big") * (size // 8 + 1)

    def perform(self, call: Call, step: Callable[[Model], Failure]) -> None:
        """One call, in which the process dies if a fuse was set."""
        after = self.model.copy()
        refused = step(after)
        if self.fuse is None:
            (answer,) = self.rig.ask(call(self.rig.store.jobs))
            self.model = after
        else:
            (answer,) = self.rig.crash_in(*self.fuse, call(self.rig.store.jobs))
            self.fuse = None
            self.rig.ask(self.rig.store.jobs.clear())
            worlds = [after] if answer.heard else [after, self.model]
            for world in worlds:
                world.restart()
            seen = self.seen()
            self.model = next((one for one in worlds if _told(one) == seen), after)
        assert type(answer.error) is (refused or type(None)), answer.error

    def seen(self) -> dict[str, Any]:
        page, counts = self.rig.ask(self.rig.store.jobs.page(1, 1000), self.rig.store.jobs.counts())
        assert counts.result.bytes <= LIMITS.bytes_max
        return {
            "jobs": {
                job.id: (job.state, job.chunks_done, job.attempts, job.bytes) for job in page.result
            },
            "counts": {k: n for k, n in counts.result.since.items() if n},
            "bytes": counts.result.bytes,
        }

    @rule(name=names, parts=sizes)
    def submit(self, name: str, parts: list[int]) -> None:
        if name in self.model.jobs:
            name = "e"
        if name in self.model.jobs:
            return  # the same id again is tested on its own
        chunks = [self.content(size) for size in parts]
        new = New("m", "batch", [], name)
        given = [Part(1, content) for content in chunks]
        self.perform(lambda jobs: jobs.submit(new, given), lambda m: m.submit(name, chunks))

    @rule(which=whichs)
    def begin_one(self, which: int) -> None:
        name = self.one(which)
        self.perform(lambda jobs: jobs.begin(name, "lost"), lambda m: m.begin(name))

    @rule(which=whichs, size=st.sampled_from(SIZES), off=st.sampled_from([0, 0, 0, 0, 1]))
    def keep(self, which: int, size: int, off: int) -> None:
        name = self.one(which)
        chunk = (self.model.jobs[name].done if name in self.model.jobs else 0) + off
        content = self.content(size)
        made = Made(content, [], Answered("m/1@0", "cpu"), 0.5)
        self.perform(
            lambda jobs: jobs.keep(name, chunk, made), lambda m: m.keep(name, chunk, content)
        )

    @rule(which=whichs, size=st.sampled_from(SIZES), count=st.integers(1, 4))
    def run(self, which: int, size: int, count: int) -> None:
        self.begin_one(which)
        for _ in range(count):
            self.keep(which, size, 0)

    @rule(which=whichs)
    def release(self, which: int) -> None:
        name = self.one(which)
        self.perform(lambda jobs: jobs.release(name), lambda m: m.release(name))

    @rule(which=whichs)
    def fail(self, which: int) -> None:
        name = self.one(which)
        self.perform(lambda jobs: jobs.fail(name, "why"), lambda m: m.fail(name))

    @rule(which=whichs)
    def cancel(self, which: int) -> None:
        name = self.one(which)
        self.perform(lambda jobs: jobs.cancel(name), lambda m: m.cancel(name))

    @rule(which=whichs)
    def remove(self, which: int) -> None:
        name = self.one(which)
        self.perform(lambda jobs: jobs.remove(name), lambda m: m.remove(name))

    @rule()
    def clear(self) -> None:
        self.perform(lambda jobs: jobs.clear(), lambda m: m.clear())

    @rule(span_s=st.sampled_from([0, 400]))
    def expire(self, span_s: int) -> None:
        self.rig.clock.at_s += span_s
        self.model.now_s += span_s
        self.perform(lambda jobs: jobs.expire(), lambda m: m.expire())

    @rule(point=st.sampled_from(WORKING), times=st.integers(1, 6))
    def set_fuse(self, point: str, times: int) -> None:
        self.fuse = (point, times)

    @rule(reboot=st.booleans())
    def crash(self, reboot: bool) -> None:
        if reboot:
            self.boots += 1
            self.rig.close()
            self.rig.clock.boot, self.rig.clock.at_s = f"boot {self.boots}", 1.0
            self.rig.clock.wall_s = 0.0  # 1970
            self.rig.open()
        else:
            self.rig.crash()
        self.rig.ask(self.rig.store.jobs.clear())
        self.model.restart()
        self.fuse = None

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "rig"):
            return
        assert self.seen() == _told(self.model)
        (faults,) = self.rig.ask(self.rig.store.ledger.faults())
        assert faults.result == []

    @rule(which=whichs)
    def look(self, which: int) -> None:
        """The chunks hold what they should."""
        name = self.one(which)
        job = self.model.jobs.get(name)
        if job is None or job.state in ("failed", "cancelled"):
            return
        jobs = self.rig.store.jobs
        calls = [jobs.chunk(name, number, STATES) for number in range(len(job.chunks))]
        assert [one.result for one in self.rig.ask(*calls)] == job.chunks


def _told(model: Model) -> dict[str, Any]:
    return {
        "jobs": {j.id: (j.state, j.done, j.attempts, j.bytes) for j in model.jobs.values()},
        "counts": {k: n for k, n in model.counts.items() if n},
        "bytes": model.bytes,
    }


@pytest.mark.parametrize("part", range(PARTS))
def test_jobs_do_what_the_model_does(part: int) -> None:
    profile = hypothesis_settings(PROFILE, max_examples=100 if LONG else 25, deadline=None)
    run_state_machine_as_test(seed(SEED * 1000 + part)(Machine), settings=profile)
