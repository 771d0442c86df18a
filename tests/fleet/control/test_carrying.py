"""Orders by stick, there and back: a real agent that never had a network, in 1970."""

import struct
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.protocol import batch, bundle, command_bundle
from agent.protocol.commands import Result
from agent.protocol.signing import Key
from agent.records import Record, RecordType, Stamp
from fleet.control import book
from fleet.control.carrying import hearing
from fleet.stick.ends import ends
from tests.fleet.control.rig import ControlProcess, asked, document, fleet, happens
from tests.outside import Device, Mosquitto, as_json, holdfast, running, until

NAME = "device-under-test"


def on(device: Device, *arguments: str) -> Any:
    done = holdfast(*arguments, "--config", str(device.config), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return as_json(done)


def within(path: Path) -> list[str]:
    """The ids in a bundle of commands that is whole."""
    with path.open("rb") as file:
        assert bundle.verify(file).header.kind == "commands"
    return [one.id for one in command_bundle.read(path.read_bytes())]


async def test_there_and_back_without_a_network_and_a_clock(
    tmp_path: Path, unset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, stick = tmp_path / "fleet.key", tmp_path / "stick"
    office = ("--database", f"sqlite:///{tmp_path}/fleet.db")
    own = {"key_file": str(tmp_path / "device.key"), "fleet_keys": [Key.kept(key).public]}
    device = Device(tmp_path, {"bundle": own})
    monkeypatch.setenv("HOLDFAST_FLEET_KEY", str(key))
    by_stick = ("--device", NAME, "--out", str(stick), *office)
    told = await document(
        "send", "log.level", "--args", '{"level": "debug"}', "--id", "o-1", *by_stick
    )
    assert [one["state"] for one in told["commands"]] == ["carried"]
    told = await document("send", "job.show", "--args", '{"job": "j9"}', "--id", "o-2", *by_stick)
    await document("send", "nosuch", "--id", "o-3", *by_stick)
    (path,) = map(Path, told["bundles"])
    ids = ["o-1", "o-2", "o-3"]
    assert (path.name, within(path)) == (f"{NAME}.cmd.hfb", ids), "all that it is owed"
    path.unlink()  # the stick is lost
    again = await document("bundle", "commands", "--out", str(stick), *office)
    assert again["bundles"] == [str(path)]

    (tmp_path / "off").write_bytes(struct.pack("=q", 86_400 - int(time.time())))
    with monkeypatch.context() as bent:
        bent.setenv("LD_PRELOAD", str(unset))
        bent.setenv("HOLDFAST_CLOCK", str(tmp_path / "off"))
        with running(device):
            on(device, "bundle", "import", str(stick))
            until(lambda: device.ledger("commands")["produced"] == 3, "all have ended")
            on(device, "bundle", "export", str(stick))
            public = on(device, "bundle", "key")["key"]
            await fleet("bundle", "trust", NAME, public, *office)
            for _ in range(2):  # the stick comes twice
                brought = await document("bundle", "import", str(stick), *office)
                (notes,) = [one["notes"] for one in brought["files"]]
                why = notes.pop()
                assert why.startswith("order o-3 (nosuch) was refused (unknown_command): there is")
                assert notes in ([], ["this very file was imported before"])
                found = (await document("commands", *office))["commands"]
                states = {one["id"]: (one["state"], one["reason"]) for one in found}
                refused = ("refused", "unknown_command")
                assert states.pop("o-3") == refused
                assert states == {"o-1": ("succeeded", ""), "o-2": ("failed", "failed")}
            on(device, "bundle", "import", str(stick))  # orders once more, and the ack
            until(lambda: device.ledger("commands")["delivered"] == 3, "all are acknowledged")
            assert device.ledger("commands")["produced"] == 3, "each had one effect"
    done = await fleet("bundle", "commands", "--out", str(stick), *office)
    assert (done.returncode, "no order is on its way" in done.stderr) == (1, True)


async def test_what_goes_by_stick_is_not_published_unless_asked(tmp_path: Path, url: str) -> None:
    key = ("--fleet-key", str(tmp_path / "fleet.key"), "--out", str(tmp_path))
    for id_, how in (("o-1", ()), ("o-2", ("--publish",)), ("o-3", ("--expires", "1s"))):
        done = await fleet("send", "x", "--device", "d", "--id", id_, *key, *how, "--database", url)
        assert done.returncode == 0, done.stderr
        if id_ == "o-2":
            assert within(tmp_path / "d.cmd.hfb") == ["o-1", "o-2"]
    later_us = int((time.time() + 3600) * 1e6)

    async def due(transaction: Any) -> list[str]:
        await book.turned(transaction, {"d": True}, later_us)
        return [one.id for one in await book.due(transaction, later_us, 10)]

    assert await asked(url, due) == ["o-2"], "though the device is there"
    await asked(url, lambda one: book.lapse(one, later_us))
    owed = await asked(url, lambda one: book.carried(one, [], later_us))
    assert {device: len(payloads) for device, payloads in owed.items()} == {"d": 1}
    found = await asked(url, book.found)
    states = {one.id: one.state for one in found}
    assert states == {"o-1": "carried", "o-2": "waiting", "o-3": "lapsed"}
    late = Result(id="o-3", name="x", device="d", state="succeeded")
    assert (await asked(url, lambda one: book.heard(one, [late], later_us, later_us)))[0] == 1


async def test_what_the_broker_lacked_a_signature_for_is_done_from_the_stick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, url = Mosquitto(tmp_path), f"sqlite:///{tmp_path}/fleet.db"
    control, office = ControlProcess(tmp_path, broker.url, url), ("--database", url)
    key, stick = tmp_path / "fleet.key", tmp_path / "stick"
    own = {"key_file": str(tmp_path / "device.key"), "fleet_keys": [Key.kept(key).public]}
    link = {"broker_url": broker.url, "ack_from": "ingest"}
    rules = {"signed": "grave", "keys": [Key.kept(tmp_path / "other.key").public]}
    device = Device(tmp_path, {"bundle": own, "link": link, "commands": rules})
    monkeypatch.setenv("HOLDFAST_FLEET_KEY", str(key))

    async def ends_as(*wanted: str) -> None:
        async def so() -> bool:
            (one,) = (await document("commands", *office))["commands"]
            return (one["state"], one["reason"]) == wanted

        await happens(so, f"it is {wanted}")

    with running(broker, control, device):
        both = ("--device", NAME, "--out", str(stick), "--publish", *office)
        nothing = ("config.rollback", "--args", '{"of": "nobody"}')
        assert (await fleet("send", *nothing, *both)).returncode == 0
        await ends_as("refused", "not_signed")
        on(device, "bundle", "import", str(stick))
        await ends_as("succeeded", "")


async def test_after_a_refusal_only_the_end_of_what_was_done_is_news(
    tmp_path: Path, url: str
) -> None:
    async def hears(state: str, reason: str = "", id: str = "o-1") -> tuple[str, str]:
        told = {"id": id, "name": "x", "device": "d", "state": state, "reason": reason}
        async with hearing(url, lambda: 1) as hear:
            await hear([msgspec.convert(told, Result)])
        return next((one.state, one.reason) for one in await asked(url, book.found) if one.id == id)

    where = ("--fleet-key", str(tmp_path / "fleet.key"), "--out", str(tmp_path), "--publish")
    for id in ("o-1", "o-2"):
        done = await fleet("send", "x", "--device", "d", "--id", id, *where, "--database", url)
        assert done.returncode == 0, done.stderr
    taken = ("refused", "id_taken")
    assert await hears(*taken, id="o-2") == taken
    assert await hears("succeeded", id="o-2") == taken, "that is another's of this id"
    refused = ("refused", "not_signed")
    assert await hears(*refused) == refused
    for later in ("accepted", "running", "expired"):
        assert await hears(later) == refused
    assert await hears("failed", "timeout") == ("failed", "timeout")
    for later in ("refused", "succeeded"):
        assert await hears(later) == ("failed", "timeout")


async def test_a_device_has_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is too much is not noted either."""
    monkeypatch.setattr("fleet.control.carrying.COMMANDS_MAX", 1)
    where = ("--database", f"sqlite:///{tmp_path}/fleet.db", "--out", str(tmp_path))
    where = (*where, "--fleet-key", str(tmp_path / "fleet.key"))
    assert (await fleet("send", "x", "--device", "d", *where)).returncode == 0
    done = await fleet("send", "x", "--device", "d", "--id", "o-9", *where)
    assert (done.returncode, "is owed 2 orders" in done.stderr) == (1, True)
    assert (await document("commands", "--id", "o-9", *where[:2]))["commands"] == []


def test_what_is_no_end_is_left_and_counted() -> None:
    good = {"id": "o-1", "name": "x", "state": "failed", "reason": "timeout", "ended_us": 5}
    odd = [{**good, "state": "running"}, {**good, "id": "a\0b"}, {"id": 1}]
    stamp = Stamp("boot-1", 1, 1)
    records = [
        Record("commands", seq, kind, stamp, msgspec.json.encode(one), 0, timebound=False)
        for seq, (one, kind) in enumerate(
            [*((one, RecordType.COMMAND) for one in (good, *odd)), (good, RecordType.RAW)], 1
        )
    ]
    found, unread = ends("d", batch.encode("d", "e1", "commands", records, []))
    wanted = Result(id="o-1", name="x", device="d", state="failed", reason="timeout", at_us=5)
    assert (found, unread) == ([wanted], 3)
    assert ends("d", b"nothing") == ([], 0)
