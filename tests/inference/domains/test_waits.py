"""For how long a domain's processes wanted a processor; as the kernel counts it: compose's test."""

from agent.inference.domains.waits import Waits


class One:
    """A process that has waited for so long."""

    def __init__(self, waited_s: float = 0.0) -> None:
        self.s = waited_s

    def waited_s(self) -> float:
        return self.s


def test_of_those_that_wait_at_the_same_time_the_longest_counts_alone() -> None:
    waits, one, other = Waits(), One(), One()
    assert waits.look([one, other]) == 0.0
    one.s, other.s = 2.0, 1.5
    assert waits.look([one, other]) == 2.0
    other.s = 3.0
    assert waits.look([one, other]) == 3.5
    assert waits.look([]) == 3.5


def test_what_was_before_it_had_a_call_does_not_count() -> None:
    waits, one = Waits(), One(100.0)
    assert waits.look([one]) == 0.0
    one.s = 101.0
    assert waits.look([one]) == 1.0
    assert waits.look([]) == 1.0, "it has answered"
    one.s = 200.0
    assert waits.look([one]) == 1.0


def test_the_count_does_not_go_back_when_a_process_is_gone() -> None:
    waits, one = Waits(), One()
    waits.look([one])
    one.s = 5.0
    assert waits.look([one]) == 5.0
    one.s = 0.0  # the kernel knows it no more
    assert waits.look([one]) == 5.0


def test_one_that_cannot_be_read_for_a_moment_has_waited_for_no_less() -> None:
    waits, one = Waits(), One(5000.0)
    waits.look([one])
    one.s = 0.0  # no descriptor was left
    waits.look([one])
    one.s = 5001.0
    assert waits.look([one]) == 1.0
