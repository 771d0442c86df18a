"""What bounds take is a condition, as long as they take it."""

import msgspec

from agent.clock import Clock
from agent.health.conditions import Conditions
from agent.health.storage import CALM_S, Storage
from agent.records import Balance
from agent.store.quarantine import PutAside
from agent.store.scrub import Found


class Hands(Clock):
    at_s = 10.0

    def monotonic(self) -> float:
        return self.at_s


def test_what_the_scrub_found_is_said_until_it_finds_it_no_more() -> None:
    clock = Hands()
    conditions = Conditions(clock)
    storage = Storage(nothing, no_files, conditions, clock)
    storage.tell_damage({"x": Found(12, [3, 4], ""), "y": Found(0, [], "disk I/O error")})
    x, y = conditions.all()
    assert (x.name, x.subject, x.severity) == ("store_damaged", "x", "warning")
    assert x.cause == "12 records were damaged on the disk: #3, #4 and 10 more"
    assert "smartctl" in x.remedy
    assert y.cause == "disk I/O error"
    storage.tell_damage({"y": Found(1, [9], "")})
    (y,) = conditions.all()
    assert y.cause == "1 record was damaged on the disk: #9"
    storage.tell_damage({})
    assert conditions.all() == []


async def nothing() -> dict[str, Balance]:
    return {}


async def no_files() -> list[PutAside]:
    return []


def given_up(**dropped: int) -> dict[str, Balance]:
    return {"x": Balance(100, 0, 100 - sum(dropped.values()), dropped)}


def test_what_is_given_up_is_said_until_it_ends() -> None:
    clock = Hands()
    conditions = Conditions(clock)
    storage = Storage(nothing, no_files, conditions, clock)
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


def test_a_damaged_file_is_said_until_it_is_removed() -> None:
    conditions = Conditions(Hands())
    storage = Storage(nothing, no_files, conditions, Hands())
    report = PutAside("s.db.quarantine-1", "e", "its header is damaged", 1, "reading", 7, 2, True)
    storage.tell([report])
    (told,) = conditions.all()
    assert (told.name, told.subject) == ("store_quarantined", "s.db.quarantine-1")
    assert told.cause == "its header is damaged; being saved, so far 7 records, lost: 2"
    storage.tell([msgspec.structs.replace(report, state="done", exact=False)])
    (told,) = conditions.all()
    assert told.cause == "its header is damaged; saved from it: 7 records, lost at least: 2"
    storage.tell([])
    assert conditions.all() == []
