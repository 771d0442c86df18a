"""The state as one document, and its copy beside the store."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.clock import Clock
from agent.errors import StoreError
from agent.health.conditions import Conditions
from agent.health.status import Status
from agent.records import Balance


async def ledger() -> dict[str, Balance]:
    return {"mic.raw": Balance(5, 1, 1, {"full": 3})}


async def link() -> dict[str, Any]:
    return {"connected": False}


@pytest.fixture
def conditions() -> Conditions:
    return Conditions(Clock())


def status(conditions: Conditions, snapshot: Path, balances: Any = ledger) -> Status:
    identity = {"device": "d1", "version": "1"}
    return Status(lambda: identity, conditions, Clock(), balances, {"link": link}, snapshot)


async def test_the_document_holds_identity_conditions_ledger_and_parts(
    conditions: Conditions, tmp_path: Path
) -> None:
    conditions.hold("link_down", "link", "warning", "a", "b")
    document = await status(conditions, tmp_path / "status.json").document()
    assert document["status"] == "degraded"
    assert document["uptime"] >= 0
    assert document["device"] == "d1"
    assert document["conditions"][0].name == "link_down"
    assert document["ledger"] == {"mic.raw": Balance(5, 1, 1, {"full": 3})}
    assert document["link"] == {"connected": False}


async def test_the_snapshot_is_the_document_with_its_time(
    conditions: Conditions, tmp_path: Path
) -> None:
    path = tmp_path / "status.json"
    path.write_text("the one before")
    before = Clock().wall() * 1e6
    await status(conditions, path).write()
    snapshot = json.loads(path.read_text())
    assert snapshot["at_us"] >= int(before)
    assert snapshot["ledger"]["mic.raw"]["produced"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"], "nothing else is left there"


async def test_a_snapshot_that_cannot_be_written_is_a_condition_until_it_can(
    conditions: Conditions, tmp_path: Path
) -> None:
    written = status(conditions, tmp_path / "gone" / "status.json")
    await written.write()
    (held,) = conditions.all()
    assert (held.name, held.severity) == ("snapshot_unwritable", "warning")
    assert "No such file" in held.cause
    (tmp_path / "gone").mkdir()
    await written.write()
    assert conditions.all() == []


async def test_a_ledger_that_cannot_be_read_leaves_the_last_snapshot(
    conditions: Conditions, tmp_path: Path
) -> None:
    async def broken() -> dict[str, Balance]:
        raise StoreError("disk I/O error", "check the disk")

    path = tmp_path / "status.json"
    path.write_text("the last good one")
    with pytest.raises(StoreError):
        await status(conditions, path, broken).write()
    assert path.read_text() == "the last good one"


def test_health_takes_its_word_from_the_conditions(conditions: Conditions, tmp_path: Path) -> None:
    short = status(conditions, tmp_path / "status.json")
    health = short.health(3)
    assert health.pop("uptime") >= 0
    assert health == {"status": "healthy", "active_requests": 3, "conditions": []}
    conditions.hold("store_full", "mic", "critical", "a", "b")
    assert short.health(0)["status"] == "unhealthy"
    assert short.health(0)["conditions"][0].remedy == "b"
