"""Whose places there are, and that one address never has all of them."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from agent.api.entry.seats import NEAR, STAYING, Seats, address
from agent.api.entry.traffic import Gate


class Transport(asyncio.BaseTransport):
    def __init__(self, peer: Any) -> None:
        super().__init__({"peername": peer})


@pytest.mark.parametrize(
    ("peer", "whose"),
    [
        (("10.0.0.7", 4711), "10.0.0.7"),
        (("::ffff:10.0.0.7", 4711, 0, 0), "10.0.0.7"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::/64"),
        (("127.0.0.1", 4711), NEAR),
        (("::1", 4711, 0, 0), NEAR),
        (("::ffff:127.0.0.1", 4711, 0, 0), NEAR),
        ("", NEAR),
        (None, NEAR),
    ],
)
def test_whose_connection_it_is(peer: Any, whose: str) -> None:
    assert address(Transport(peer)) == whose


def test_one_address_leaves_places_for_others() -> None:
    gate = Gate(128)
    seats = Seats(128, gate)
    taken = sum(seats.take("10.0.0.7") for _ in range(400))
    assert taken == 128 - 128 // STAYING
    assert seats.take("10.0.0.8")
    assert gate.turned_away == 400 - taken
    seats.leave("10.0.0.7")
    assert seats.take("10.0.0.7")


def test_programs_of_this_machine_may_have_all() -> None:
    seats = Seats(8, Gate(8))
    assert all(seats.take(NEAR) for _ in range(8))
    assert not seats.take(NEAR)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 128])
def test_what_is_taken_and_given_back_adds_up(most: int) -> None:
    chance, held = random.Random(most), list[str]()
    gate = Gate(most)
    seats = Seats(most, gate)
    for _ in range(5000):
        if held and chance.random() < 0.5:
            seats.leave(held.pop(chance.randrange(len(held))))
        elif seats.take(whose := chance.choice([NEAR, "a", "b", "c"])):
            held.append(whose)
        assert (seats.free, gate.connected) == (most - len(held), len(held))
        counted = Counter(held)
        assert max((counted[one] for one in "abc"), default=0) <= max(1, most - most // STAYING)
    assert seats._taken.keys() <= set("abc") & set(held)
