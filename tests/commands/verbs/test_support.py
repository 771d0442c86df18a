"""`log.upload` and `support.upload`: one archive for each order, whatever happens meanwhile; what
is in it, and what is not."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config
from agent.cli.client import Client
from agent.clock import Clock
from agent.commands.verbs.support import SupportVerbs
from agent.records import Upload
from agent.store.store import Store
from tests.commands.device import lines
from tests.commands.rig import rig
from tests.commands.test_killed import played
from tests.e2e.judge import Judge
from tests.outside import Device, Mosquitto, as_json, holdfast, running, until
from tests.sync.controller import Controller
from tests.test_support import opened

ORDERS = [
    {"id": "a", "name": "support.upload"},
    {"id": "b:1", "name": "log.upload", "args": {"level": "warning"}},
]
STATES = ["make:before", "keep:before", "keep:after", "end:before", "begin:after"]
if "HOLDFAST_LONG" not in os.environ:
    STATES = STATES[1:4]
SECRET = "hunter2hunter2"
DEVICE = "device-under-test"


@pytest.mark.parametrize("state", STATES)
def test_killed_in_any_state_it_sends_one_archive(tmp_path: Path, state: str) -> None:
    module = "tests.commands.verbs.support_device"
    _, told = played(tmp_path, state, 1, "kill", ORDERS, module)
    assert lines(tmp_path / "struck") == [state]
    assert {name: set(ends) for name, ends in told.items()} == {
        "a": {"succeeded"},
        "b:1": {"succeeded"},
    }
    for upload, content, result in asyncio.run(_kept(tmp_path)):
        assert hashlib.sha256(content).hexdigest() == upload.sha256 == result["sha256"]
        assert len(content) == upload.size_bytes
        assert result["name"] == upload.name == f"{upload.what}-{result['id']}.tar.gz"


async def _kept(folder: Path) -> list[tuple[Upload, bytes, dict[str, Any]]]:
    """Each record of the stream, with its blob and the result that names it."""
    found = []
    async with Store(config.Store(path=str(folder / "s.db")), Clock()) as store:
        assert (await store.ledger.balances())["support"].produced == len(ORDERS)
        while batch := await store.outbox.lease(100, 1 << 20):
            for record in batch.records:
                if record.stream == "support":
                    upload = msgspec.json.decode(record.body, type=Upload)
                    entry = await store.journal.get(upload.command)
                    assert entry and entry.result
                    result = msgspec.json.decode(entry.result)
                    assert (result["stream"], result["seq"]) == (record.stream, record.seq)
                    content = await store.outbox.blob(record, 0, record.blob_bytes)
                    result["id"] = upload.command.replace(":", "-")
                    found.append((upload, content, result))
    assert len(found) == len(ORDERS)
    return found


async def test_where_the_store_has_no_room_it_fails_and_says_so(tmp_path: Path) -> None:
    async with rig(tmp_path, run=False) as one:

        async def archive() -> bytes:
            return bytes(8 << 20)

        bounds = one.store._database._bounds
        assert bounds
        bounds._settings = msgspec.structs.replace(bounds._settings, bytes_max=1 << 20)
        verbs = SupportVerbs(archive, lambda *_: archive(), one.store.uploads.keep).verbs()
        one.desk.catalogue._verbs.update({verb.name: verb for verb in verbs})
        running = asyncio.create_task(one.desk.run())
        await one.order("support.upload")
        ended = await one.ended()
        assert (ended.state, ended.reason) == ("failed", "failed")
        assert ended.hint
        assert "support" not in await one.store.ledger.balances()
        running.cancel()
        await asyncio.wait([running])


def test_what_a_device_sends_is_whole_and_has_no_secret(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    (tmp_path / "password").write_text(SECRET)
    entry = {"username": "dev", "password_file": str(tmp_path / "password")}
    link = {"broker_url": broker.url, "ack_from": "ingest", "backoff_s_min": 0.1, **entry}
    device = Device(tmp_path, {"link": link, "commands": {"signed": "never"}})
    with device.config.open("a") as file:
        file.write(f"# formerly mqtt://dev:{SECRET}@broker\n# token: {SECRET}\n")
    judge = Judge(tmp_path / "judge.db", broker.port, DEVICE)
    with running(broker, device, judge):
        wanted = {"name": "grafana", "scopes": ["read"]}
        token = Client(device.socket).post("/api/v1/tokens", wanted)["token"]
        controller = Controller(
            broker.port, f"holdfast/v1/{DEVICE}/result", root=f"holdfast/v1/{DEVICE}"
        )
        issuer = {"issuer": f"password={SECRET}"}
        controller.send({"id": "one", "name": "support.upload", **issuer})
        controller.send({"id": "two", "name": "log.upload", "args": {"level": "info"}})
        until(lambda: controller.ends("one") and controller.ends("two"), "both have ended")
        until(lambda: len(judge.seqs("support")) == 2, "both were delivered")
        until(lambda: device.ledger("support")["delivered"] == 2, "both were acknowledged")
        results = {name: controller.ends(name)[0].result for name in ("one", "two")}
        for body, content in judge.blobs("support"):
            upload = msgspec.json.decode(body, type=Upload)
            assert hashlib.sha256(content).hexdigest() == upload.sha256
            assert results[upload.command]["sha256"] == upload.sha256
            found = opened(content)
            assert SECRET not in str(found)
            assert token not in str(found)
            _is_whole(found, support=upload.what == "support")
        done = holdfast("support-bundle", str(tmp_path / "x.tar.gz"), "-c", str(device.config))
        assert done.returncode == 0, done.stderr
        found = opened((tmp_path / "x.tar.gz").read_bytes())
        assert SECRET not in str(found)
        _is_whole(found, support=True)
        assert (tmp_path / "x.tar.gz").stat().st_mode & 0o77 == 0
        controller.stop()
    _without_the_agent(device, tmp_path)


def _is_whole(found: dict[str, Any], *, support: bool) -> None:
    contents = found["contents.json"]
    assert contents["device"] == DEVICE
    assert set(contents["missing"]) <= {"journal.txt"}, "not each machine has one"
    assert f"on device {DEVICE}" in found["log.txt"]
    if support:
        assert found["status.json"]["device"] == DEVICE
        assert found["commands.json"]["commands"][-1]["issuer"] == "password=***"
        assert "mqtt://***@broker" in found["config.yaml"]
        assert found["machine.json"]["disk"]["free_bytes"] > 0
        names = {"conditions", "ledger", "models", "config-versions", "watchdog", "accelerators"}
        assert {f"{name}.json" for name in names | {"starts", "clock", "store"}} <= set(found)


def _without_the_agent(device: Device, folder: Path) -> None:
    done = holdfast("support-bundle", str(folder / "y.tar.gz"), "-c", str(device.config), "--json")
    assert done.returncode == 3, done.stderr
    assert "no agent answers" in as_json(done)["alarm"]
    found = opened((folder / "y.tar.gz").read_bytes())
    assert SECRET not in str(found)
    assert found["contents.json"]["device"] == DEVICE
    assert found["status.json"]["device"] == DEVICE
    assert "mqtt://***@broker" in found["config.yaml"]
    with device.config.open("a") as file:
        file.write("nonsense: 1\n")
    done = holdfast("support-bundle", str(folder / "z.tar.gz"), "-c", str(device.config))
    assert done.returncode == 78, done.stderr
    found = opened((folder / "z.tar.gz").read_bytes())
    assert SECRET not in str(found)
    assert "nonsense: 1" in found["config.yaml"]
