"""The circuit breaker against what it says it does, on a clock that the test moves."""

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.inference.breaker import CALLS_MIN, ERRORS_MAX, OPEN_S, WINDOW_S, Breaker


class Course(RuleBasedStateMachine):
    """Calls that begin and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now_s = 0.0
        self.calls: list[tuple[int, bool]] = []  # under way: their pass, whether it is a probe
        self.opened_s: float | None = None
        self.probe_s: float | None = None  # when the last probe began
        self.ended: list[tuple[float, bool]] = []

    @rule()
    def begin(self) -> None:
        before = self.breaker.state(self.now_s)
        admitted = self.breaker.admits(self.now_s)
        if before == "closed":
            assert admitted is not None
        elif before == "open":
            assert admitted is None
        else:
            free = self.probe_s is None or self.now_s >= self.probe_s + OPEN_S
            assert (admitted is not None) == free, "one probe at a time"
        if admitted is not None:
            self.calls.append((admitted, before == "half-open"))
            if before == "half-open":
                self.calls = [(one, one == admitted) for one, _ in self.calls]
                self.probe_s = self.now_s

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), erred=st.sampled_from([True, True, False, None]))
    def end(self, data: st.DataObject, erred: bool | None) -> None:
        call = data.draw(st.sampled_from(self.calls))
        self.calls.remove(call)
        before = self.breaker.state(self.now_s)
        changed = self.breaker.went(self.now_s, call[0], erred=erred)
        after = self.breaker.state(self.now_s)
        if before == "half-open" and call[1]:
            assert after == {True: "open", False: "closed", None: "half-open"}[erred]
            self.probe_s = None
        elif before != "closed":
            assert not changed, "it began before the breaker changed"
        if changed:
            self.calls = [(one, False) for one, _ in self.calls]
            self.opened_s = self.now_s if after == "open" else None
            self.probe_s = None

    @rule(seconds=st.sampled_from([0.1, 1.0, OPEN_S / 2, OPEN_S, WINDOW_S]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def is_what_it_was_made(self) -> None:
        state = self.breaker.state(self.now_s)
        if self.opened_s is None:
            assert state == "closed"
        else:
            assert state == ("open" if self.now_s < self.opened_s + OPEN_S else "half-open")
            assert 0 < self.breaker.retry_s(self.now_s) <= OPEN_S + 1e-6


Course.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestCourse = Course.TestCase


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=80))
def test_it_opens_exactly_when_too_many_of_the_last_calls_erred(
    calls: list[tuple[bool, float]],
) -> None:
    breaker, now_s, kept = Breaker(), 0.0, list[tuple[float, bool]]()
    for erred, pause_s in calls:
        now_s += pause_s
        admitted = breaker.admits(now_s)
        assert admitted is not None
        kept = [one for one in [*kept, (now_s, erred)] if one[0] >= now_s - WINDOW_S]
        errors = sum(one for _, one in kept)
        opens = len(kept) >= CALLS_MIN and errors > ERRORS_MAX * len(kept)
        assert breaker.went(now_s, admitted, erred=erred) == opens
        if opens:
            assert breaker.admits(now_s) is None
            return


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(CALLS_MIN):
        admitted = breaker.admits(0.0)
        assert admitted is not None
        breaker.went(0.0, admitted, erred=True)
    assert breaker.state(0.0) == "open"
    return breaker


def test_a_probe_that_says_nothing_makes_room_for_the_next_at_once() -> None:
    breaker = opened()
    first = breaker.admits(OPEN_S)
    assert first is not None
    assert breaker.admits(OPEN_S) is None
    assert not breaker.went(OPEN_S, first, erred=None)
    second = breaker.admits(OPEN_S)
    assert second is not None
    assert not breaker.went(OPEN_S, first, erred=False), "it is heard of once"
    assert breaker.went(OPEN_S, second, erred=False)
    assert breaker.state(OPEN_S) == "closed"


def test_calls_from_before_it_opened_are_no_probe() -> None:
    breaker = Breaker()
    early = breaker.admits(0.0)
    assert early is not None
    for _ in range(CALLS_MIN):
        breaker.went(0.0, early, erred=True)
    assert breaker.state(OPEN_S) == "half-open"
    assert not breaker.went(OPEN_S, early, erred=False)
    assert breaker.state(OPEN_S) == "half-open"
