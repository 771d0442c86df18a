"""The doors of the air gap, on a real store behind a real socket."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agent.api.routes.bundle import BundleDoors
from agent.protocol import ack
from agent.store.store import Store
from agent.sync.stick.bundle import Bundles
from tests.api.served import Served
from tests.store.shop import made, stocked
from tests.sync.bundles import Cargo, ack_bundle, desk

BASE = "http://localhost/api/v1/bundle/"


class Desk(Served):
    """Before the doors of a store's bundles."""

    def __init__(self, store: Store, bundles: Bundles, folder: Path) -> None:
        self.store = store
        self.bundles = bundles
        super().__init__(folder, BASE, BundleDoors(bundles).routes())

    async def part(self, export: str, number: int = 1) -> bytes:
        async with self.client.post(f"{BASE}export/{export}/{number}") as answer:
            assert answer.status == 200
            return await answer.read()


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Desk]:
    async with made(tmp_path) as store:
        await stocked(store)
        async with Desk(store, desk(store, tmp_path), tmp_path) as at:
            yield at


async def test_an_export_goes_part_by_part(opened: Desk) -> None:
    status, state = await opened.ask("POST", "export")
    assert (status, state["records"], state["part_next"]) == (201, 15, 1)
    content = await opened.part(state["export"])
    assert len(Cargo(content).records) == 15
    status, after = await opened.ask("GET", "export")
    assert (status, after["part_next"], after["part"]) == (200, 1, 1)
    assert after["part_digest"] == Cargo(content).sealed[0].digest
    status, kept = await opened.ask("POST", f"export/{state['export']}/1/kept")
    assert (status, kept["part_next"]) == (200, None)


async def test_what_is_not_there_or_makes_no_sense_is_refused(opened: Desk) -> None:
    assert (await opened.ask("GET", "export"))[0] == 404
    for body in (b'{"part_bytes": 1}', b'{"part": 1}', b"[]", b"{", b'{"part_bytes": 5e12}'):
        status, said = await opened.ask("POST", "export", body)
        assert (status, bool(said["hint"])) == (400, True)
    _, state = await opened.ask("POST", "export")
    for route, code in (
        (f"export/{state['export']}/2", 404),
        (f"export/{state['export']}/x", 400),
        ("export/0123456789abcdef/1", 404),
        (f"export/{state['export']}/1/kept", 409),
    ):
        assert (await opened.ask("POST", route))[0] == code


async def test_a_part_that_fails_has_no_end(opened: Desk) -> None:
    _, state = await opened.ask("POST", "export")
    export = opened.bundles.export()
    export._extents = [msgspec.structs.replace(one, file="former") for one in export._extents]
    with pytest.raises(aiohttp.ClientError):
        await opened.part(state["export"])
    _, after = await opened.ask("GET", "export")
    assert "a new one has begun" in after["failure"]
    assert (after["part"], after["part_next"]) == (None, 1)


async def test_the_way_back(opened: Desk) -> None:
    right = ack_bundle(ack.Ack({opened.store.epoch: {"a": ack.StreamAck(10)}}))
    status, said = await opened.ask("POST", "ack", right + b"x")
    assert (status, said["verdict"]) == (400, "damaged")
    status, said = await opened.ask("POST", "ack", io.BytesIO(b"x" * (5 << 20)))
    assert (status, said["verdict"]) == (413, "not_a_bundle")
    assert said["hint"]
    status, said = await opened.ask("POST", "ack", b"x" * 5000)
    assert (status, said["verdict"]) == (400, "not_a_bundle")
    status, said = await opened.ask("POST", "ack", right)
    assert (status, said["verdict"], said["delivered"]) == (200, "taken", 5)


async def test_what_changes_or_carries_anything_is_not_served_over_tcp(opened: Desk) -> None:
    _, state = await opened.ask("POST", "export")
    base = f"http://127.0.0.1:{opened.server.port}/api/v1/bundle/"
    async with aiohttp.ClientSession() as client:
        for route in ("export", f"export/{state['export']}/1", "ack"):
            async with client.post(base + route) as answer:
                assert answer.status == 403
        async with client.get(base + "key") as answer:
            assert (await answer.json())["key"].startswith("hf1pub:")
