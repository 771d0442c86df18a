"""The policy against what the watchdog promises, for any course of a part."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.health.watchdog import policy
from agent.health.watchdog.policy import Reading, Rule, Standing, Step, Verdict

TICK_S = 2.0
LADDER = (
    Step("instance", 2, 600.0, None),
    Step("domain", 1, 600.0, None),
    Step("agent", 1, 3600.0, 30.0),
)
RULE = Rule(10.0, 24.0, LADDER)


class Course:
    """A part and its watchdog, tick by tick; every remedy that is due is taken."""

    def __init__(self, rule: Rule = RULE) -> None:
        self.rule = rule
        self.now_s = 100.0
        self.standing: Standing | None = None
        self.taken: list[tuple[float, str]] = []
        self.held_up_s = 1000.0  # before anybody looked

    def tick(self, done: int, *, owed: bool, held_up_s: float = 0.0) -> Verdict:
        """One look, in a tick of which it was held up for so long."""
        self.now_s += TICK_S
        self.held_up_s += held_up_s
        reading = Reading(done, owed, held_up_s=self.held_up_s)
        standing = policy.seen(self.standing, reading, self.now_s)
        if step := policy.due(self.rule, standing, self.now_s):
            standing = policy.took(standing, step, self.now_s)
            self.taken.append((self.now_s, step.remedy))
        self.standing = standing
        return policy.verdict(self.rule, standing, self.now_s)

    @property
    def exhausted(self) -> bool:
        assert self.standing
        return policy.exhausted(self.rule, self.standing, self.now_s)


def test_who_owes_nothing_is_fine_for_ever() -> None:
    course = Course()
    assert {course.tick(0, owed=False) for _ in range(1000)} == {Verdict.FINE}
    assert not course.taken


def test_who_moves_is_fine_whatever_is_owed() -> None:
    course = Course()
    assert {course.tick(done, owed=True) for done in range(1000)} == {Verdict.FINE}


def test_a_count_that_began_anew_has_moved() -> None:
    course = Course()
    for done in [*range(100), 0, 0]:
        assert course.tick(done, owed=True) is Verdict.FINE


def test_who_stands_still_is_late_then_dead_and_climbs_the_ladder() -> None:
    course = Course()
    told = [course.tick(7, owed=True) for _ in range(60)]
    assert [told.index(Verdict.LATE), told.index(Verdict.DEAD)] == [5, 12]
    begun = 102.0
    assert [(at - begun, remedy) for at, remedy in course.taken] == [
        (24.0, "instance"),
        (48.0, "instance"),
        (72.0, "domain"),
        (96.0, "agent"),
    ]
    assert not course.exhausted, "that may still help"
    while not course.exhausted:
        course.tick(7, owed=True)
    assert course.now_s - begun == 96.0 + 30.0


def test_what_began_anew_has_as_long_as_what_it_replaced() -> None:
    course = Course()
    while len(course.taken) < 2:
        done = 7 if len(course.taken) == 0 else 8  # the first remedy helps for a moment
        course.tick(done, owed=True)
    (first_s, _), (second_s, _) = course.taken
    assert second_s - first_s == RULE.dead_s + TICK_S, "counted from the step that it made"


def test_who_is_held_up_is_late_as_anybody_and_dead_by_time_of_its_own() -> None:
    course = Course()
    own_s, told = 0.25, list[Verdict]()  # of each tick; the rest of it is others'
    while not course.taken:
        told.append(course.tick(7, owed=True, held_up_s=TICK_S - own_s))
    assert (told.index(Verdict.LATE) * TICK_S, told.index(Verdict.DEAD) * own_s) == (10.0, 24.0)
    while len(course.taken) < 2:
        course.tick(7, owed=True, held_up_s=TICK_S - own_s)
    (first_s, _), (second_s, _) = course.taken
    assert second_s - first_s == 24.0 / own_s * TICK_S, "nor in the pause after a remedy"


def test_who_is_held_up_all_the_time_is_never_treated() -> None:
    course = Course()
    told = [course.tick(7, owed=True, held_up_s=TICK_S) for _ in range(1000)]
    assert (told[-1], course.taken) == (Verdict.LATE, [])
    assert course.tick(8, owed=True) is Verdict.FINE
    while not course.taken:
        course.tick(8, owed=True)
    assert course.taken[0][0] == course.now_s
    assert course.now_s - 102.0 == 1000 * TICK_S + 24.0, "what was before it moved is forgotten"


def test_nothing_is_exhausted_while_a_remedy_may_still_help() -> None:
    course = Course()
    while not course.taken or course.taken[-1][1] != "agent":
        course.tick(7, owed=True)
        assert not course.exhausted
    course.tick(8, owed=True)
    assert not course.exhausted, "it moves"


def test_a_remedy_that_failed_has_no_effect_to_wait_for() -> None:
    course = Course()
    while len(course.taken) < 3:
        course.tick(7, owed=True)
        if course.taken:
            assert course.standing
            course.standing = policy.failed(course.standing)
    assert [remedy for _, remedy in course.taken] == ["instance", "instance", "domain"]
    assert [later - first for (first, _), (later, _) in pairwise(course.taken)] == [TICK_S, TICK_S]


def test_who_dies_again_and_again_flaps_and_costs_dearer_remedies() -> None:
    course = Course()
    told = [course.tick(0, owed=True)]
    for done in range(1, 40):
        before = len(course.taken)
        while len(course.taken) == before and not course.exhausted:
            course.tick(done - 1, owed=True)
        told.append(course.tick(done, owed=True))
    assert Verdict.FLAPPING in told
    assert [remedy for _, remedy in course.taken][:4] == [
        "instance",
        "instance",
        "domain",
        "agent",
    ]


def test_a_budget_comes_back() -> None:
    course, done = Course(), 0
    for _ in range(6):
        before = len(course.taken)
        while len(course.taken) == before:
            course.tick(done, owed=True)
        for _ in range(350):
            done += 1
            course.tick(done, owed=True)
    assert {remedy for _, remedy in course.taken} == {"instance"}


steps = st.builds(
    Step,
    remedy=st.sampled_from(["instance", "domain", "part", "agent"]),
    tries=st.integers(1, 4),
    within_s=st.floats(10, 4000),
    pause_s=st.none() | st.floats(0, 60),
)
rules = st.builds(
    Rule,
    late_s=st.floats(1, 10),
    dead_s=st.floats(10, 26),
    steps=st.lists(steps, max_size=5, unique_by=lambda one: one.remedy).map(tuple),
)
courses = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300)


@given(rules, courses)
def test_the_promises_hold_for_any_course(rule: Rule, looks: list[tuple[bool, bool]]) -> None:
    course, done = Course(rule), 0
    moved_s = course.now_s + TICK_S
    for moves, owed in looks:
        done += moves
        before = len(course.taken)
        verdict = course.tick(done, owed=owed)
        if moves or not owed:
            moved_s = course.now_s
        still_s = course.now_s - moved_s
        assert (verdict is Verdict.DEAD) == (still_s >= rule.dead_s)
        if len(course.taken) > before:
            assert verdict is Verdict.DEAD, "who moves is left alone"
        if rule.steps and rule.dead_s <= still_s < rule.dead_s + TICK_S and not before:
            assert len(course.taken) == 1, "the first remedy comes with the first look"
        assert course.standing
        assert len(course.standing.taken) <= policy.TAKEN_MAX
    pauses = {step.remedy: step.pause_s for step in rule.steps}
    for (first, remedy), (later, _) in pairwise(course.taken):
        pause_s = pauses[remedy]
        assert later - first >= (rule.dead_s if pause_s is None else pause_s)
    for step in rule.steps:
        at = [at_s for at_s, remedy in course.taken if remedy == step.remedy]
        for first, later in zip(at, at[step.tries :], strict=False):
            assert later - first >= step.within_s, "no budget is overdrawn"
