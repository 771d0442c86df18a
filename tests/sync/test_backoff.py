"""How long the link waits: bounds that double, and all of it left to chance."""

import random

from agent.sync.mqtt.backoff import Backoff

DEVICES = 2000


class Longest(random.Random):
    """Always the bound."""

    def uniform(self, a: float, b: float) -> float:
        assert a == 0
        return b


def test_the_bound_doubles_up_to_the_longest_and_begins_anew() -> None:
    backoff = Backoff(4.0, 20.0, Longest())
    assert [backoff.wait_s() for _ in range(5)] == [4.0, 8.0, 16.0, 20.0, 20.0]
    backoff.begin_anew()
    assert backoff.wait_s() == 4.0


def test_a_shortest_wait_above_the_longest_is_cut() -> None:
    assert Backoff(50.0, 20.0, Longest()).wait_s() == 20.0


def test_of_many_devices_few_wait_equally_long() -> None:
    """In each second of the default's four no more than its share, and a little chance."""
    waits = [Backoff(4.0, 120.0, random.Random(seed)).wait_s() for seed in range(DEVICES)]
    assert all(0 <= wait <= 4 for wait in waits)
    seconds = [sum(int(wait) == second for wait in waits) for second in range(4)]
    assert max(seconds) <= 0.30 * DEVICES
    assert len(set(waits)) > 0.99 * DEVICES
