"""Each attack that The Update Framework names, over HTTP and from a folder: refused, and why."""

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.updates.fetched import NotFetched
from tests.updates.bed import (
    TARGET,
    Shop,
    believe,
    content,
    forever,
    serving,
)

Attack = Callable[[Shop, Path], None]


def published(folder: Path) -> Shop:
    """A repository in its fourth state, and its third one as an old copy of it."""
    shop = Shop(folder / "shop")
    shop.add()
    shop.publish()
    shop.publish("targets")
    shop.copy(folder / "old")
    shop.publish("targets")
    return shop


def old_copy(shop: Shop, old: Path) -> None:
    shutil.rmtree(shop.served)
    shutil.copytree(old, shop.served)


def old_snapshot(shop: Shop, old: Path) -> None:
    shutil.copy(old / "metadata/3.snapshot.json", shop.metadata / "4.snapshot.json")


def old_targets(shop: Shop, old: Path) -> None:
    shutil.copy(old / "metadata/3.targets.json", shop.metadata / "4.targets.json")


def next_timestamp_of_old_snapshot(shop: Shop, old: Path) -> None:
    def change(signed: dict[str, Any]) -> None:
        signed["version"] = 9
        signed["meta"]["snapshot.json"]["version"] = 3

    shop.forge("timestamp.json", change, "timestamp")


def altered_timestamp(shop: Shop, old: Path) -> None:
    shop.forge("timestamp.json", lambda signed: signed.update(version=9))


def strangers_timestamp(shop: Shop, old: Path) -> None:
    shop.forge("timestamp.json", lambda signed: signed.update(version=9), "snapshot")


def strangers_root(shop: Shop, old: Path) -> None:
    shutil.copy(shop.root_file, shop.metadata / "2.root.json")
    shop.forge("2.root.json", lambda signed: signed.update(version=2), "timestamp")


def old_root_again(shop: Shop, old: Path) -> None:
    shutil.copy(shop.root_file, shop.metadata / "2.root.json")


def altered_targets(shop: Shop, old: Path) -> None:
    def change(signed: dict[str, Any]) -> None:
        signed["targets"][TARGET]["length"] = 1

    shop.forge("4.targets.json", change)


def lost_role(shop: Shop, old: Path) -> None:
    """Signed by stolen online keys: there were no targets, ever."""
    shop.forge("4.snapshot.json", lambda signed: signed.update(version=5, meta={}), "snapshot")
    data = (shop.metadata / "4.snapshot.json").read_bytes()
    (shop.metadata / "4.snapshot.json").rename(shop.metadata / "5.snapshot.json")
    hashes = {"sha256": hashlib.sha256(data).hexdigest()}
    told = {"snapshot.json": {"version": 5, "length": len(data), "hashes": hashes}}
    shop.forge("timestamp.json", lambda signed: signed.update(version=5, meta=told), "timestamp")


def snapshot_for_timestamp(shop: Shop, old: Path) -> None:
    shutil.copy(shop.metadata / "4.snapshot.json", shop.metadata / "timestamp.json")


def no_metadata(shop: Shop, old: Path) -> None:
    (shop.metadata / "timestamp.json").write_bytes(b"<html>Welcome to the hotel's network</html>")


def deep(shop: Shop, old: Path) -> None:
    (shop.metadata / "timestamp.json").write_bytes(b"[" * 8000 + b"]" * 8000)


def huge(shop: Shop, old: Path) -> None:
    with (shop.metadata / "timestamp.json").open("r+b") as file:
        file.truncate(1 << 20)


def half_copied(shop: Shop, old: Path) -> None:
    (shop.metadata / "4.snapshot.json").unlink()


ATTACKS = [
    (old_copy, "rollback", "timestamp 3, and this device has seen 4"),
    (next_timestamp_of_old_snapshot, "rollback", "snapshot 3, and this device has seen 4"),
    (old_snapshot, "mix_and_match", "4.snapshot.json"),
    (old_targets, "mix_and_match", "4.targets.json"),
    (altered_targets, "mix_and_match", "4.targets.json"),
    (old_root_again, "mix_and_match", "2.root.json"),
    (altered_timestamp, "bad_signature", "timestamp.json"),
    (strangers_timestamp, "bad_signature", "timestamp.json"),
    (strangers_root, "bad_signature", "2.root.json"),
    (snapshot_for_timestamp, "unreadable", "timestamp.json"),
    (no_metadata, "unreadable", "timestamp.json"),
    (deep, "unreadable", "timestamp.json"),
    (huge, "too_long", "16384"),
    (half_copied, "unreachable", "4.snapshot.json"),
]


@pytest.mark.parametrize(("attack", "reason", "said"), ATTACKS)
def test_folder(tmp_path: Path, attack: Attack, reason: str, said: str) -> None:
    """What was believed before is believed after it: no attack makes a device worse off."""
    shop = published(tmp_path)
    believed = believe(shop.served, shop.root_file, tmp_path / "trust")
    good = shop.copy(tmp_path / "good")
    attack(shop, tmp_path / "old")
    # What was cut from another state is not asked for where the device has the right one still.
    for name in ("snapshot.json", "targets.json"):
        if attack is not next_timestamp_of_old_snapshot:
            (tmp_path / "trust" / "metadata" / name).unlink()
    with pytest.raises(NotFetched) as refused:
        believe(shop.served, shop.root_file, tmp_path / "trust")
    assert refused.value.reason == reason
    assert str(refused.value).startswith(f"{reason}: ")
    assert said in str(refused.value)
    assert refused.value.hint
    root_file = good / "metadata/1.root.json"
    assert believe(good, root_file, tmp_path / "trust").versions == believed.versions


@pytest.mark.parametrize(
    ("attack", "reason", "said"),
    [ATTACKS[i] for i in (0, 2, 6, 10, 12)],
)
async def test_http(tmp_path: Path, attack: Attack, reason: str, said: str) -> None:
    """The same over HTTP, by a process of its own, for a device that knew the state before."""
    shop = published(tmp_path)
    root = hashlib.sha256(shop.root_file.read_bytes()).hexdigest()[:16]
    trust = tmp_path / "device" / "trust" / root
    believe(shop.served, shop.root_file, trust)
    (trust / "metadata" / "snapshot.json").unlink()
    attack(shop, tmp_path / "old")
    async with serving(shop.served) as server:
        with pytest.raises(NotFetched) as refused:
            await content(tmp_path / "device", shop, server.url).fetch(TARGET, _untold)
    assert refused.value.reason == reason
    assert said in str(refused.value)


async def _untold(_: float, __: str) -> None:
    raise AssertionError("nothing may be fetched")


async def test_endless(tmp_path: Path) -> None:
    """A server that never ends is left at the byte after the last that may come."""
    shop = published(tmp_path)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await forever(b" " * 1000, response, request)
        return response

    async with serving(shop.served) as server:
        server.odd["timestamp.json"] = endless
        with pytest.raises(NotFetched) as refused:
            await content(tmp_path / "device", shop, server.url).check()
    assert refused.value.reason == "too_long"
    incoming = next((tmp_path / "device" / "trust").rglob("incoming"))
    assert incoming.stat().st_size == 16_385


async def test_silent(tmp_path: Path) -> None:
    """A server that drips holds nobody up for longer than the check has."""
    shop = published(tmp_path)

    async def drips(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    async with serving(shop.served) as server:
        server.odd["timestamp.json"] = drips
        device = content(tmp_path / "device", shop, server.url, check_s_max=2.0)
        with pytest.raises(NotFetched) as refused:
            await device.check()
    assert refused.value.reason == "too_slow"


def test_power_cut_keeps_marks(tmp_path: Path) -> None:
    """tuf's own copies are gone or empty; what was believed is not forgotten."""
    shop = published(tmp_path)
    believe(shop.served, shop.root_file, tmp_path / "trust")
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (tmp_path / "trust" / "metadata" / name).write_bytes(b"")
    (tmp_path / "trust" / "metadata" / "tmp12345").write_bytes(b"left over")
    with pytest.raises(NotFetched) as refused:
        believe(tmp_path / "old", shop.root_file, tmp_path / "trust")
    assert refused.value.reason == "rollback"
    assert not (tmp_path / "trust" / "metadata" / "tmp12345").exists()
    assert believe(shop.served, shop.root_file, tmp_path / "trust").versions["timestamp"] == 4


def test_lost_role(tmp_path: Path) -> None:
    """Stolen online keys say that there are no targets: refused, and what is newer is believed."""
    shop = published(tmp_path)
    believe(shop.served, shop.root_file, tmp_path / "trust")
    good = shop.copy(tmp_path / "good")
    lost_role(shop, tmp_path / "old")
    with pytest.raises(NotFetched, match=r"rollback: .*missing info for"):
        believe(shop.served, shop.root_file, tmp_path / "trust")
    old_copy(shop, good)
    with pytest.raises(NotFetched, match=r"rollback: .* timestamp 4, and this device has seen 5"):
        believe(shop.served, shop.root_file, tmp_path / "trust")
    shop.publish()
    shop.publish()
    assert believe(shop.served, shop.root_file, tmp_path / "trust").versions["timestamp"] == 6


def test_fast_forward(tmp_path: Path) -> None:
    """Stolen online keys signed the highest version there is: with other keys all begins anew."""
    shop = published(tmp_path)
    highest = 2**31 - 1
    good = shop.copy(tmp_path / "good")
    shop.forge("timestamp.json", lambda signed: signed.update(version=highest), "timestamp")
    found = believe(shop.served, shop.root_file, tmp_path / "trust")
    assert found.versions["timestamp"] == highest
    shutil.rmtree(shop.served)
    shutil.copytree(good, shop.served)
    with pytest.raises(NotFetched, match="rollback"):
        believe(shop.served, shop.root_file, tmp_path / "trust")
    from fleet.updates import keys

    fresh = keys.make(shop.keys, "timestamp-new").public_key
    shop.signing().rotate(shop.repository.state(), "timestamp", [fresh], 1, keep=False)
    assert believe(shop.served, shop.root_file, tmp_path / "trust").versions["timestamp"] == 5
