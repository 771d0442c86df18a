"""Sticks at the cloud's end, on a real database."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyrage
import pytest

from agent.clock import Clock
from agent.errors import BundleError
from agent.protocol import batch, bundle, signing
from agent.records import Range, Record, Stamp
from agent.store.store import Store
from fleet.stick.bundle import Sticks
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.outside import DEADLINE_S, ROOT
from tests.store.shop import made, stocked
from tests.sync.bundles import FLEET, STRANGER, Cargo, ack_bundle, all_parts, desk

FLEET_COMMAND = Path(sys.executable).with_name("holdfast-fleet")
DEVICE_BYTES = 15_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    (tmp_path / "device").mkdir()
    async with made(tmp_path / "device") as store:
        await stocked(store)
        yield store


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as cloud:
        yield cloud


async def files(store: Store, folder: Path, part_bytes: int = 1 << 30) -> list[Path]:
    export = await desk(store, folder).begin(part_bytes)
    paths = []
    for number, part in enumerate(await all_parts(export), 1):
        paths.append(folder / f"{export.id}-{number}.hfb")
        paths[-1].write_bytes(part)
    return paths


async def known(cloud: Cloud, store: Store, folder: Path, **other: Any) -> Sticks:
    """Sticks that trust the device's key."""
    sticks = Sticks(cloud, other.get("identities", ()), Clock())
    await sticks.trust("d", (await desk(store, folder).key()).public)
    return sticks


async def rows(cloud: Cloud) -> list[tuple[str, int]]:
    async with cloud.database.begin() as transaction:
        found = await transaction.fetch(
            "SELECT s.name, r.seq FROM records r JOIN streams s ON s.id = r.stream ORDER BY 1, 2"
        )
    return [(name, seq) for name, seq in found]


async def refused(sticks: Sticks, path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        await sticks.take(path)
    assert caught.value.hint
    return caught.value.verdict


async def test_what_a_stick_brings_is_stored_once_and_answered(
    tmp_path: Path, store: Store, cloud: Cloud
) -> None:
    (path,) = await files(store, tmp_path)
    sticks = await known(cloud, store, tmp_path)
    first = await sticks.take(path)
    assert (first.verdict, first.records_new, first.records_known) == ("stored", 15, 0)
    assert (first.blobs_done, first.refused) == (15, 0)
    assert (first.missing, first.last_known, first.notes) == ([], True, [])
    wanted = sorted(Cargo(path.read_bytes()).records)
    assert await rows(cloud) == wanted
    again = await sticks.take(path)
    assert (again.verdict, again.records_new, again.records_known) == ("known", 0, 15)
    assert await rows(cloud) == wanted
    answer = await sticks.answer(again, tmp_path / "acks", FLEET)
    assert [one.name for one in answer.parent.iterdir()] == [answer.name]
    with answer.open("rb") as file:
        sealed = bundle.verify(file)
    # 1-4 were acknowledged before, to nobody this cloud knows of.
    assert sealed.header.device == "d"
    taken = await desk(store, tmp_path).take(answer.read_bytes())
    assert (taken["verdict"], taken["delivered"]) == ("taken", 15)
    balance = (await store.ledger.balances())["a"]
    assert (balance.held, balance.balanced) == (0, True)
    assert await store.ledger.faults() == []


async def test_a_dead_letter_goes_by_stick_when_it_is_sent_again(
    tmp_path: Path, store: Store, cloud: Cloud
) -> None:
    """It was told as dead; retried, it is what the next stick brings, and its ack purges it."""
    name, sticks = (store.epoch, "a"), await known(cloud, store, tmp_path)
    for seq in (8, 9):
        await store.outbox.bury(name, seq, "refused by the ingest")

    async def travel() -> tuple[int, int]:
        """What was new in the office, and what was purged here."""
        (path,) = await files(store, tmp_path)
        there = await sticks.take(path)
        answer = await sticks.answer(there, tmp_path / "acks", FLEET)
        taken = await desk(store, tmp_path).take(answer.read_bytes())
        return there.records_new, taken["delivered"]

    assert await travel() == (13, 13)
    await store.decisions.retry(name, [8])
    first = (await cloud.ack("d")).epochs[store.epoch]["a"]
    assert first.dead == [Range(8, 9)]
    assert await travel() == (1, 1)
    assert await files(store, tmp_path) == []
    balance = (await store.ledger.balances())["a"]
    assert (balance.held, balance.balanced) == (1, True)


async def test_parts_come_in_any_order_and_missing_ones_are_named(
    tmp_path: Path, store: Store, cloud: Cloud
) -> None:
    paths = await files(store, tmp_path, DEVICE_BYTES)
    count = len(paths)
    assert count > 3
    sticks = await known(cloud, store, tmp_path)
    second = await sticks.take(paths[1])
    assert (second.missing, second.last_known) == ([1], False)
    assert "part 1 of this export has not come yet" in second.notes[0]
    ahead = await sticks.answer(second, tmp_path, FLEET)
    taken = await desk(store, tmp_path).take(ahead.read_bytes())
    assert taken["delivered"] == second.records_new, "the range above the hole"
    last = await sticks.take(paths[-1])
    assert (last.missing, last.last_known) == ([1, *range(3, count)], True)
    for path in paths[3:-1]:
        await sticks.take(path)
    third = await sticks.take(paths[2])
    assert third.missing == [1]
    first = await sticks.take(paths[0])
    assert (first.missing, first.last_known, first.notes) == ([], True, [])
    assert await rows(cloud) == sorted(Cargo(*(path.read_bytes() for path in paths)).records)
    await desk(store, tmp_path).take((await sticks.answer(first, tmp_path, FLEET)).read_bytes())
    assert (await store.ledger.balances())["a"].held == 0


async def test_a_part_that_was_made_anew_is_missing_in_its_former_form(
    tmp_path: Path, store: Store, cloud: Cloud
) -> None:
    """The first stick held part 1 as it was; part 2 follows a part 1 that was made again."""
    bundles = desk(store, tmp_path)
    export = await bundles.begin(DEVICE_BYTES)
    former = b"".join([made async for made in export.part(1)])
    await store.outbox.acknowledge((store.epoch, "a"), [Range(5, 5)])
    again = b"".join([made async for made in export.part(1)])
    export.keep(1)
    second = b"".join([made async for made in export.part(2)])
    sticks = await known(cloud, store, tmp_path)
    path = tmp_path / "part.hfb"
    for content, missing in ((former, []), (second, [1]), (again, [])):
        path.write_bytes(content)
        assert (await sticks.take(path)).missing == missing


async def test_what_is_not_whole_or_not_believed_is_refused_whole(
    tmp_path: Path, store: Store, cloud: Cloud
) -> None:
    (path,) = await files(store, tmp_path)
    whole = path.read_bytes()
    sticks = Sticks(cloud, (), Clock())
    assert await refused(sticks, path) == "unknown_key"
    key = (await desk(store, tmp_path).key()).public
    await sticks.trust("another", key)
    assert await refused(sticks, path) == "wrong_device"
    await sticks.trust("d", STRANGER.public)
    assert await refused(sticks, path) == "wrong_device"
    await sticks.trust("d", key)
    path.write_bytes(whole[:-1])
    assert await refused(sticks, path) == "cut_off"
    path.write_bytes(whole[: len(whole) // 2])
    assert await refused(sticks, path) == "cut_off"
    path.write_bytes(whole[:5000] + b"?" + whole[5001:])
    assert await refused(sticks, path) == "damaged"
    path.write_bytes(ack_bundle(await cloud.ack("d")))
    assert await refused(sticks, path) == "not_data"
    path.write_bytes(b"")
    assert await refused(sticks, path) == "cut_off"
    assert await refused(sticks, tmp_path / "nothing") == "unreadable"
    assert await refused(sticks, tmp_path) == "unreadable"
    assert await rows(cloud) == []
    path.write_bytes(whole)
    assert (await sticks.take(path)).records_new == 15
    assert await sticks.distrust("d", key)
    assert not await sticks.distrust("d", key)
    assert await refused(sticks, path) == "wrong_device"


def carrying(device: str, payload: bytes, key: signing.Key) -> bytes:
    header = bundle.Header(
        kind="data",
        device=device,
        export="0123456789abcdef",
        part=1,
        by=key.public,
        created="2026-01-01T00:00:00+00:00",
    )
    writer = bundle.Writer(header, key)
    content = writer.begin() + writer.frame(bundle.BATCH, payload)
    return content + writer.end(bundle.Footer(frames=1, records=1, blob_bytes=0, covers={}))


async def test_a_device_cannot_speak_for_another(tmp_path: Path, cloud: Cloud) -> None:
    sticks = Sticks(cloud, (), Clock())
    await sticks.trust("d", STRANGER.public)
    path = tmp_path / "x.hfb"
    record = Record("a", 1, "t", Stamp("b", 1, 1), b"{}")
    path.write_bytes(carrying("d", batch.encode("victim", "e", "a", [record], []), STRANGER))
    assert await refused(sticks, path) == "damaged"
    path.write_bytes(carrying("d", b"no envelope", STRANGER))
    assert await refused(sticks, path) == "damaged"
    path.write_bytes(carrying("victim", batch.encode("victim", "e", "a", [record], []), STRANGER))
    assert await refused(sticks, path) == "wrong_device"
    assert await rows(cloud) == []
    path.write_bytes(carrying("d", batch.encode("d", "e", "a", [record], []), STRANGER))
    assert (await sticks.take(path)).records_new == 1


async def test_an_encrypted_bundle_needs_an_identity(
    tmp_path: Path, store: Store, cloud: Cloud
) -> None:
    mine, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    (path,) = await files(store, tmp_path)
    whole = pyrage.encrypt(path.read_bytes(), [mine.to_public()])
    path.write_bytes(whole)
    assert await refused(await known(cloud, store, tmp_path), path) == "encrypted"
    sticks = await known(cloud, store, tmp_path, identities=[other])
    assert await refused(sticks, path) == "not_decrypted"
    sticks = await known(cloud, store, tmp_path, identities=[other, mine])
    for spoilt in (whole[:-1], whole[: len(whole) // 2], whole[:-50] + bytes(50)):
        path.write_bytes(spoilt)
        assert await refused(sticks, path) in ("damaged", "cut_off")
    path.write_bytes(whole)
    assert (await sticks.take(path)).records_new == 15


def run(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [str(FLEET_COMMAND), "bundle", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
    )
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return found


async def test_the_command_imports_a_folder_and_says_what_is_missing(
    tmp_path: Path, store: Store
) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    paths = await files(store, tmp_path, DEVICE_BYTES)
    for path in paths:
        path.rename(usb / path.name)
    hole = usb / paths[1].name
    hole.rename(tmp_path / "kept")
    base = ("--database", f"sqlite:///{tmp_path}/fleet.db")
    keys = (*base, "--key-file", str(tmp_path / "fleet.key"))
    found = run("import", str(usb), *keys, code=7)
    assert {one["verdict"] for one in found["files"]} == {"unknown_key"}
    (hint,) = {one["hint"] for one in found["files"]}
    key = hint.rsplit(" ", 1)[1]
    assert hint.endswith(f"holdfast-fleet bundle trust d {key}")
    run("trust", "d", key, *base)
    found = run("import", str(usb), *keys, code=9)
    assert found["files"][0]["missing"] == [2]
    (answer,) = found["acks"]
    assert Path(answer).parent == usb
    (tmp_path / "kept").rename(hole)
    (usb / "spoilt.hfb").write_bytes(b"HFBNDL1\n")
    found = run("import", str(usb), *keys, code=7)
    assert [one["verdict"] for one in found["files"]].count("known") == len(paths) - 1
    assert found["files"][-1]["verdict"] == "cut_off"
    (usb / "spoilt.hfb").unlink()
    assert run("import", str(usb), *keys)["acks"] == [answer]
    public = run("key", "--key-file", str(tmp_path / "fleet.key"))["key"]
    taken = await desk(store, tmp_path, fleet_keys=[public]).take(Path(answer).read_bytes())
    assert taken["delivered"] == 15
    assert run("check", answer)["kind"] == "ack"
    assert run("check", str(hole))["part"] == 2
    assert run("check", str(tmp_path / "fleet.db"), code=7)["verdict"] == "not_a_bundle"
    assert run("trust", "d", key, "--remove", *base)["trusted"] is False
    assert run("import", str(usb), *keys, code=7)["acks"] == []
    assert (
        "no bundle is there"
        in run("import", str(tmp_path / "acks"), *keys, code=7)["files"][0]["error"]
        or True
    )
