"""Why the agent began: the table, and what holds of any evidence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.health.starts.causes import (
    BURST,
    MARK_S,
    Cause,
    Ended,
    Evidence,
    Mark,
    Run,
    Verdict,
    judge,
)

HERE, THERE = "boot-2", "boot-1"
WATCHDOG = ("watchdog",)


def run(boot: str = THERE, ended: Ended = "", mark: Mark | None = None) -> Run:
    return Run(boot, 100.0, 4000.0, ended, "store stood still" if ended == "again" else "", mark)


def marked(cause: Cause, ago_s: float = 10.0) -> Run:
    return run(ended="told", mark=Mark(cause, "as it was said", 4000.0 - ago_s))


@pytest.mark.parametrize(
    ("last", "hardware", "more", "cause"),
    [
        (None, (), {}, Cause.UNKNOWN),
        (None, WATCHDOG, {}, Cause.UNKNOWN),
        # within one boot, whatever the hardware says of that boot's beginning
        (run(HERE), WATCHDOG, {}, Cause.CRASH),
        (run(HERE, "told"), WATCHDOG, {}, Cause.ORDERED),
        (run(HERE, "again"), (), {}, Cause.HUNG),
        (run(HERE), (), {"hung": True}, Cause.HUNG),
        (run(HERE, "told"), (), {"hung": True}, Cause.HUNG),
        # the machine began anew
        (run(), (), {}, Cause.POWER),
        (run(), ("power_low",), {}, Cause.POWER),
        (run(), WATCHDOG, {}, Cause.WATCHDOG),
        (run(), ("power_low", "watchdog"), {}, Cause.WATCHDOG),
        (run(), ("overheat",), {}, Cause.WATCHDOG),
        (run(), None, {}, Cause.UNKNOWN),
        (run(), (), {"hung": True}, Cause.POWER),
        (run(), (), {"panicked": True}, Cause.CRASH),
        (run(), None, {"panicked": True}, Cause.CRASH),
        (run(), (), {"restarts": BURST - 1}, Cause.CRASH),
        (run(), None, {"restarts": BURST - 1}, Cause.CRASH),
        (run(), (), {"restarts": BURST - 2}, Cause.POWER),
        (run(ended="told"), (), {}, Cause.ORDERED),
        (run(ended="told"), None, {}, Cause.ORDERED),
        # a board whose watchdog is what resets it, whoever has it rebooted
        (run(ended="told"), WATCHDOG, {}, Cause.ORDERED),
        (run(ended="told"), ("software",), {}, Cause.ORDERED),
        (run(ended="again"), WATCHDOG, {}, Cause.WATCHDOG),
        # software, and nobody had said so
        (run(), ("software",), {}, Cause.CRASH),
        (run(), ("software",), {"panicked": True}, Cause.CRASH),
        (run(), ("software", "watchdog"), {}, Cause.WATCHDOG),
        (run(), ("software", "power_low"), {}, Cause.POWER),
        (run(ended="again"), (), {}, Cause.POWER),
        # who rebooted it has said so
        (marked(Cause.ORDERED), WATCHDOG, {}, Cause.ORDERED),
        (marked(Cause.WATCHDOG), (), {}, Cause.WATCHDOG),
        (marked(Cause.WATCHDOG), None, {"panicked": True}, Cause.WATCHDOG),
        (marked(Cause.WATCHDOG, MARK_S + 1), (), {}, Cause.ORDERED),
    ],
)
def test_what_the_evidence_says(
    last: Run | None, hardware: tuple[str, ...] | None, more: dict[str, int], cause: Cause
) -> None:
    found = judge(Evidence(HERE, last, hardware, **more))
    assert found.cause is cause, found.why
    assert found.reset == (last is not None and last.boot != HERE)
    assert found.why


seconds = st.floats(0, 1e12)
marks = st.builds(Mark, st.sampled_from(Cause), st.text(), seconds)
runs = st.builds(
    Run,
    *(st.sampled_from([HERE, THERE]), seconds, seconds),
    *(st.sampled_from(["", "told", "again"]), st.text(), st.none() | marks),
)
words = st.sampled_from(
    ["watchdog", "overheat", "power_low", "power_high", "fan", "external", "software"]
)
evidences = st.builds(
    Evidence,
    st.just(HERE),
    st.none() | runs,
    st.none() | st.lists(words, unique=True).map(tuple),
    *(st.booleans(), st.booleans(), st.integers(0, 100)),
)


@given(evidences)
def test_any_evidence_has_a_verdict_that_fits_the_boot(evidence: Evidence) -> None:
    found = judge(evidence)
    assert isinstance(found, Verdict)
    if not found.reset:
        assert found.cause not in (Cause.POWER, Cause.WATCHDOG), "the machine went on"
    elif evidence.last and evidence.last.mark is None:
        assert found.cause is not Cause.HUNG, "the agent's own"


@given(evidences)
def test_where_the_hardware_says_watchdog_no_power_cut_is_made_of_it(evidence: Evidence) -> None:
    found = judge(evidence._replace(hardware=WATCHDOG))
    last = evidence.last
    if found.reset and last and last.mark is None:
        assert found.cause is (Cause.ORDERED if last.ended == "told" else Cause.WATCHDOG)


@given(evidences)
def test_who_was_told_to_end_has_no_part_in_what_came_after(evidence: Evidence) -> None:
    if (last := evidence.last) is None or last.mark:
        return
    found = judge(evidence._replace(last=replace(last, ended="told"), hung=False))
    assert found.cause is Cause.ORDERED
