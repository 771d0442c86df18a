"""Commands on a stick: believed as a whole, for this device, once; also with a clock in 1970."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config
from agent.errors import BundleError
from agent.protocol import bundle, command_bundle
from agent.protocol.commands import Command
from agent.protocol.signing import Key
from agent.sync.stick.bundle import Bundles
from tests.commands.rig import DEVICE, Rig, rig
from tests.commands.test_desk import Trusted

FLEET, STRANGER = Key(bytes(32)), Key(bytes(range(32)))
CREATED = "2026-11-22T10:00:00+00:00"
IN_1970 = -50 * 365.25 * 86_400


def bundles(one: Rig, folder: Path) -> Bundles:
    settings = config.Bundle(key_file=str(folder / "device.key"), fleet_keys=[FLEET.public])
    store = one.store
    return Bundles(DEVICE, settings, store.held, store.outbox, Trusted(), one.desk)


async def test_its_commands_are_done_once(tmp_path: Path) -> None:
    clock = Trusted(synchronised=False, ahead_s=IN_1970)
    async with rig(tmp_path, signed="all", clock=clock) as one:
        orders = [
            Command(id="a", name="grave", args={"line": "x"}),
            Command(id="b", name="nosuch"),
            Command(id="c", name="write", device="another"),
        ]
        made = command_bundle.made(DEVICE, orders, FLEET, CREATED)
        for _ in range(2):  # the stick comes twice
            taken = await bundles(one, tmp_path).take(made)
            states = {row["id"]: row["state"] for row in taken["commands"]}
            await one.ended("a")
            assert (states["b"], states["c"]) == ("refused", "refused")
        assert states["a"] == "succeeded"
        assert one.effects.lines() == ["a:x"]
        (entry,) = await one.store.journal.page(None, 10)
        assert (entry.door, entry.by) == ("bundle", FLEET.public)


async def records(one: Rig) -> list[dict[str, Any]]:
    """What the stream of commands tells the cloud."""
    (extent,) = await one.store.held.extents()
    assert extent.name[1] == "commands"
    stretch = await one.store.held.next(extent, 0, 100, 1 << 20)
    assert stretch
    return [msgspec.json.decode(record.body) for record in stretch.records]


async def test_what_it_refuses_is_told_by_a_record_once(tmp_path: Path) -> None:
    """There may be no other way back than the next bundle."""
    async with rig(tmp_path) as one:
        orders = [
            Command(id="a", name="write"),
            Command(id="b", name="nosuch", issuer="the office"),
            Command(id="c", name="write", device="another"),
        ]
        made = command_bundle.made(DEVICE, orders, FLEET, CREATED)
        for _ in range(2):  # the stick comes twice
            await bundles(one, tmp_path).take(made)
            await one.ended("a")
        await one.order("nosuch", "d")  # by a door whose caller was told at once
        told = {row["id"]: row for row in await records(one)}
        assert len(await records(one)) == len(told) == 3
        assert (told["a"]["state"], told["a"]["args"]) == ("succeeded", {})
        wanted = ("refused", "unknown_command", "bundle", FLEET.public, "the office")
        assert tuple(told["b"][k] for k in ("state", "reason", "door", "by", "issuer")) == wanted
        assert (told["c"]["state"], told["c"]["reason"]) == ("refused", "wrong_device")
        assert len(await one.store.journal.refusals(10)) == 5


async def test_a_store_without_room_for_the_record_keeps_the_refusal(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        one.takes_no_record()
        made = command_bundle.made(DEVICE, [Command(id="b", name="nosuch")], FLEET, CREATED)
        await bundles(one, tmp_path).take(made)
        assert [row.reason for row in await one.store.journal.refusals(10)] == ["unknown_command"]
        assert await one.store.held.extents() == []


async def test_a_record_has_no_secret_of_what_was_ordered(tmp_path: Path) -> None:
    async with rig(tmp_path) as one:
        await one.order("write", args={"line": "link: {broker_url: mqtts://me:pw@b, password: pw}"})
        await one.ended()
        (row,) = await records(one)
        assert "pw" not in row["args"]["line"]
        assert "broker_url: mqtts://***@b" in row["args"]["line"]


@pytest.mark.parametrize("way", ["stranger", "wrong_device", "bent", "cut", "no_command"])
async def test_what_is_not_believed_orders_nothing(tmp_path: Path, way: str) -> None:
    async with rig(tmp_path) as one:
        device = "another" if way == "wrong_device" else DEVICE
        key = STRANGER if way == "stranger" else FLEET
        made = command_bundle.made(device, [Command(id="a", name="write")], key, CREATED)
        if way == "bent":
            made = made.replace(b'"write"', b'"wrote"')
        elif way == "cut":
            made = made[:-20]
        elif way == "no_command":
            header = bundle.Header(
                *(),
                kind="commands",
                device=DEVICE,
                export="0" * 16,
                part=1,
                by=FLEET.public,
                created=CREATED,
            )
            writer = bundle.Writer(header, FLEET)
            made = writer.begin() + writer.frame(bundle.COMMAND, msgspec.json.encode({"id": "a"}))
            made += writer.end(bundle.Footer(frames=1, records=0, blob_bytes=0, covers={}))
            taken = await bundles(one, tmp_path).take(made)
            assert [row["state"] for row in taken["commands"]] == ["refused"]
            return
        with pytest.raises(BundleError) as caught:
            await bundles(one, tmp_path).take(made)
        verdicts = {"bent": "damaged", "cut": "cut_off"}
        assert caught.value.verdict == verdicts.get(way, way)
        assert one.effects.lines() == []
