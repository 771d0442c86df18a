"""The link's doors: what they say, what they take, and what they refuse."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from agent.api.routes.sync import SyncDoors
from agent.errors import NotNow, StoreError
from agent.shown import Rate, Sync
from tests.api.served import Served

BASE = "http://localhost/api/v1/sync"


class Orders:
    """Notes what was ordered; the real one is in tests/sync/test_control.py."""

    def __init__(self) -> None:
        self.got: list[tuple[object, ...]] = []
        self.fault: Exception | None = None

    def _note(self, *order: object) -> None:
        if self.fault:
            raise self.fault
        self.got.append(order)

    async def pause(self, for_s: float | None) -> None:
        self._note("pause", for_s)

    async def resume(self) -> None:
        self._note("resume")

    async def limit(self, bytes_per_s: int | None, for_s: float | None) -> None:
        self._note("limit", bytes_per_s, for_s)

    def now(self, unlimited_s: float | None) -> None:
        self._note("now", unlimited_s)


STATE: Sync = {
    **{"connected": False, "broker": "mqtt://a", "embedded": False, "fallback": False},
    **{"protocol": "5", "ack_from": "ingest", "connected_s": None, "down_s": 1.0},
    **{"down_cause": "refused", "last_ack_age_s": None, "paused": False, "paused_for_s": None},
    "rate": dict.fromkeys(Rate.__annotations__),
    "limit": {"rate_bytes_per_s_max": None, "why": "settings", "for_s": None},
    **{"backlog": None, "eta_s": None, "quota": None, "heartbeat_s": 5.0, "sent_bytes": 0},
    "acknowledged_records": 0,
}


class Desk(Served):
    """Its state says by its bytes how many orders there were."""

    def __init__(self, folder: Path) -> None:
        self.orders = Orders()
        super().__init__(folder, BASE, SyncDoors(self.orders, self._state).routes())

    async def _state(self) -> Sync:
        return STATE | {"sent_bytes": len(self.orders.got)}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Desk(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("door", "body", "order"),
    [
        ("/pause", None, ("pause", None)),
        ("/pause", '{"for_s": 7200}', ("pause", 7200)),
        ("/resume", "{}", ("resume",)),
        ("/limit", '{"rate_bytes_per_s_max": 65536}', ("limit", 65_536, None)),
        ("/limit", '{"rate_bytes_per_s_max": 1024, "for_s": 0.5}', ("limit", 1024, 0.5)),
        ("/limit", '{"rate_bytes_per_s_max": null}', ("limit", None, None)),
        ("/now", None, ("now", None)),
        ("/now", '{"unlimited_s": 600}', ("now", 600)),
    ],
)
async def test_an_order_is_handed_on_and_answered_with_the_state_after_it(
    desk: Desk, door: str, body: str | None, order: tuple[object, ...]
) -> None:
    assert await desk.ask("POST", door, body) == (200, STATE | {"sent_bytes": 1})
    assert desk.orders.got == [order]
    assert await desk.ask("GET") == (200, STATE | {"sent_bytes": 1})


@pytest.mark.parametrize(
    ("door", "body", "word"),
    [
        ("/pause", '{"for_s": -1}', "for_s"),
        ("/pause", '{"for_s": 1e12}', "for_s"),
        ("/pause", '{"until": 3}', "until"),
        ("/pause", "[]", "array"),
        ("/pause", "\ufffd{", "malformed"),
        ("/resume", '{"for_s": 1}', "for_s"),
        ("/limit", "{}", "rate_bytes_per_s_max"),
        ("/limit", '{"rate_bytes_per_s_max": 1023}', "1024"),
        ("/limit", '{"rate_bytes_per_s_max": 1e400}', "rate_bytes_per_s_max"),
        ("/limit", '{"rate_bytes_per_s_max": 9223372036854775808}', "<= 1000000000000"),
        ("/limit", '{"rate_bytes_per_s_max": null, "for_s": 5}', "for_s goes with a rate"),
        ("/now", '{"unlimited_s": "long"}', "unlimited_s"),
        ("/now?for=3", "{}", "for"),
    ],
)
async def test_a_wrong_order_is_told_what_is_wrong_and_changes_nothing(
    desk: Desk, door: str, body: str, word: str
) -> None:
    status, answer = await desk.ask("POST", door, body)
    assert status == 400
    assert word in answer["error"]
    assert answer["hint"]
    assert desk.orders.got == []


@pytest.mark.parametrize(
    ("fault", "status"), [(NotNow("sending is paused", "x"), 409), (StoreError("no", "x"), 503)]
)
async def test_what_cannot_be_done_now_is_refused(
    desk: Desk, fault: Exception, status: int
) -> None:
    desk.orders.fault = fault
    for door in ("/now", "/pause", "/resume"):
        assert (await desk.ask("POST", door))[0] == status


async def test_orders_come_by_the_socket_alone(desk: Desk) -> None:
    base = f"http://127.0.0.1:{desk.server.port}/api/v1/sync"
    async with aiohttp.ClientSession() as client:
        async with client.get(base) as answer:
            assert answer.status == 200
        for door in ("/now", "/pause", "/resume", "/limit"):
            async with client.post(base + door, data="{}") as answer:
                assert answer.status == 403
    assert desk.orders.got == []
