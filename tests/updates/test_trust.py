"""Whom a device believes, and what stands in its way before anybody attacks."""

import asyncio
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agent.updates.checking import LINE_BYTES_MAX
from agent.updates.fetched import NotFetched
from tests.outside import DEADLINE_S
from tests.updates.bed import DAY_S, NOW_S, FakeClock, Shop, believe, content

FLOOD_BYTES = 6 * LINE_BYTES_MAX


def published(folder: Path) -> Shop:
    shop = Shop(folder / "shop")
    shop.add()
    shop.publish()
    return shop


def test_another_root_file(tmp_path: Path) -> None:
    """A device that is given another fleet's root believes that fleet, and not the former."""
    shop = published(tmp_path)
    other = Shop(tmp_path / "other")
    device = content(tmp_path / "device", shop, f"file://{other.served}")
    with pytest.raises(NotFetched, match="bad_signature"):
        asyncio.run(device.check())
    device = content(tmp_path / "device", other, f"file://{other.served}")
    assert asyncio.run(device.check()).versions["timestamp"] == 1
    assert len(list((tmp_path / "device" / "trust").iterdir())) == 1


def test_freeze(tmp_path: Path) -> None:
    """Nothing new for longer than the timestamp holds: a trusted clock says so."""
    shop = published(tmp_path)
    with pytest.raises(NotFetched) as refused:
        believe(shop.served, shop.root_file, tmp_path / "trust", NOW_S + 31 * DAY_S)
    assert refused.value.reason == "expired"
    assert "timestamp.json is expired" in str(refused.value)


async def test_expired_by_clock(tmp_path: Path) -> None:
    shop = published(tmp_path)
    clock = FakeClock(NOW_S + 31 * DAY_S)
    device = content(tmp_path / "device", shop, f"file://{shop.served}", clock=clock)
    with pytest.raises(NotFetched, match="expired"):
        await device.check()


async def test_not_set_up(tmp_path: Path) -> None:
    shop = published(tmp_path)
    none = str(tmp_path / "none")
    wrong: list[dict[str, Any]] = [{"root_file": None}, {"root_file": none}, {"urls": []}]
    for settings in wrong:
        device = content(tmp_path / "device", shop, f"file://{shop.served}", **settings)
        with pytest.raises(NotFetched) as refused:
            await device.check()
        assert refused.value.reason == "not_set_up"
        assert refused.value.hint


async def test_dead_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies on what a stranger wrote is a refusal, and says its status."""
    shop = published(tmp_path)
    monkeypatch.setattr("agent.updates.trust.COMMAND", ("/bin/sh", "-c", "kill -9 $$"))
    with pytest.raises(NotFetched, match="ended with status -9") as refused:
        await content(tmp_path / "device", shop, f"file://{shop.served}").check()
    assert refused.value.reason == "failed"


async def test_a_checker_that_says_too_much_is_heard_to_its_end_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It judges what strangers wrote: what it makes of that costs the agent no memory."""
    shop = published(tmp_path)
    flood = f"head -c {FLOOD_BYTES} /dev/zero"
    says = f"echo no answer; {flood}; {flood} >&2; echo >&2; echo last words >&2; exit 7"
    monkeypatch.setattr("agent.updates.trust.COMMAND", ("/bin/sh", "-c", says))
    monkeypatch.setattr("agent.updates.trust.END_S", DEADLINE_S)
    device = content(tmp_path / "device", shop, f"file://{shop.served}")
    tracemalloc.start()
    try:
        with pytest.raises(NotFetched, match="ended with status 7 last words"):
            await device.check()
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < FLOOD_BYTES, "asyncio reads 2 * LINE_BYTES_MAX ahead, of either"


def test_tuf_stays_out(tmp_path: Path) -> None:
    """The agent never imports it: a check costs memory only while it lasts."""
    code = (
        "import sys, json, agent.app, agent.updates.content; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = json.loads(done.stdout)
    assert "agent.updates.content" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in ("tuf", "securesystemslib")]
