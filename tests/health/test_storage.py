"""What bounds take is a condition, as long as they take it."""

from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.storage import CALM_S, Storage
from agent.records import Balance


class Hands(Clock):
    at_s = 10.0

    def monotonic(self) -> float:
        return self.at_s


async def nothing() -> dict[str, Balance]:
    return {}


def given_up(**dropped: int) -> dict[str, Balance]:
    return {"x": Balance(100, 0, 100 - sum(dropped.values()), dropped)}


def test_what_is_given_up_is_said_until_it_ends() -> None:
    clock = Hands()
    conditions = Conditions(clock)
    storage = Storage(nothing, conditions, clock)
    storage.look(given_up(evicted=5), first=True)
    assert conditions.all() == [], "given up before the start"
    storage.look(given_up(evicted=7, expired=1, processed=9))
    assert [c.name for c in conditions.all()] == ["store_evicting", "store_expiring"]
    assert all(c.subject == "x" and c.remedy for c in conditions.all())
    assert "7 records" in conditions.all()[0].cause
    clock.at_s += CALM_S - 1
    storage.look(given_up(evicted=8, expired=1))
    clock.at_s += 2
    storage.look(given_up(evicted=8, expired=1))
    assert [c.name for c in conditions.all()] == ["store_evicting"]
    clock.at_s += CALM_S
    storage.look(given_up(evicted=8, expired=1))
    assert conditions.all() == []
