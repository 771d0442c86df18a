"""The primary host: the node is silent without it, and looks for it at the next broker."""

import asyncio
from pathlib import Path

import pytest

from agent.sync.sparkplug.host import PrimaryHost
from tests.outside import Mosquitto, running
from tests.sync.rig import eventually
from tests.sync.sparkplug.judge import Host
from tests.sync.sparkplug.rig import Site


async def silent(host: Host, site: Site) -> None:
    """All that came before this was heard, and the device was not even looked at."""
    site.conditions.clear("order_refused", "sparkplug")
    host.command(b"\xff")
    await eventually(lambda: site.holds("order_refused"), "it is heard")
    for _ in range(20):
        await asyncio.sleep(0)
    assert site.looks == 0


async def test_it_is_born_once_its_host_is_there(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url, primary_host_id="scada")
    async with site.born():
        await eventually(lambda: "nothing" in site.cause("sparkplug_host_away"), "it waits")
        host.state(online=True, at_ms=5, host_id="another")
        host.client.publish("spBv1.0/STATE/scada", "ONLINE", 1)  # as of Sparkplug 2
        await eventually(lambda: "ONLINE is no STATE" in site.cause("sparkplug_host_away"), "told")
        host.state(online=False, at_ms=10)
        await eventually(lambda: "offline" in site.cause("sparkplug_host_away"), "still away")
        await silent(host, site)
        host.state(online=True, at_ms=9)  # from before it went
        await eventually(lambda: "older" in site.cause("sparkplug_host_away"), "it is passed over")
        await silent(host, site)
        host.state(online=True, at_ms=10)
        await eventually(lambda: host.births, "the birth")
        assert not site.holds("sparkplug_host_away")


async def test_it_dies_when_its_host_goes_and_is_born_when_it_is_back(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    host.state(online=True, at_ms=100)  # retained
    site = Site(tmp_path, broker.url, primary_host_id="scada")
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        host.state(online=False, at_ms=99)  # a death of a connection before
        site.shows(paused=True)
        await eventually(lambda: host.values["Sync/Paused"], "it goes on")
        host.state(online=False, at_ms=100)
        await eventually(lambda: host.deaths, "its death")
        assert host.deaths[0].bdseq == host.births[0].bdseq
        await eventually(lambda: site.holds("sparkplug_host_away"), "it waits")
        host.state(online=True, at_ms=200)
        await eventually(lambda: len(host.births) == 2, "the birth")
        assert host.births[1].bdseq > host.births[0].bdseq
        assert not site.holds("sparkplug_host_away")
        await eventually(lambda: not site.holds("sparkplug_down"), "all is well")


@pytest.mark.parametrize("first_says", ["offline", "nothing"])
async def test_it_goes_on_to_the_broker_that_has_its_host(
    tmp_path: Path, broker: Mosquitto, host: Host, first_says: str
) -> None:
    second = Mosquitto(tmp_path)
    with running(second):
        other = Host(second.port)
        if first_says == "offline":
            host.state(online=False, at_ms=1)
        other.state(online=True, at_ms=1)
        site = Site(tmp_path, broker.url, primary_host_id="scada", fallback_urls=[second.url])
        site.patience_s = 0.2
        async with site.born():
            await eventually(lambda: other.births, "the birth at the other broker")
            assert not host.births
            host.state(online=True, at_ms=2)
            other.state(online=False, at_ms=2)
            await eventually(lambda: host.births, "the birth at the first")
            assert not other.online
        other.close()
        assert not other.faults


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"online": 1, "timestamp": 2}', b'{"online": true}', b"\xff", b"OFFLINE"],
)
def test_what_is_no_state_changes_nothing_and_is_said(content: bytes) -> None:
    host = PrimaryHost()
    host.heard(content)
    assert host.online is None
    assert "no STATE" in host.fault
    host.heard(b'{"online": true, "timestamp": 2, "more": 3}')
    assert (host.online, host.fault) == (True, "")
