"""The edge node at a real Mosquitto; a host made of paho and the protobuf library judges."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agent import VERSION
from agent.records import Balance
from agent.sync.mqtt.brokers import MQTT5, MQTT311
from agent.sync.mqtt.connection import Will
from agent.sync.plant import line
from agent.sync.plant.seen import DomainSeen, Seen
from tests.outside import ROOT, Mosquitto, running
from tests.sync.rig import Proxy, Stub, eventually
from tests.sync.site import SEEN
from tests.sync.sparkplug.judge import Host
from tests.sync.sparkplug.rig import Site
from tests.sync.sparkplug.tahu import command, parsed


def cut(content: bytes) -> tuple[bytes, bytes]:
    """A string of MQTT, and what comes behind it."""
    size = 2 + int.from_bytes(content[:2], "big")
    return content[2:size], content[size:]


class Process:
    """An agent's part for Sparkplug alone, in a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self._command = [sys.executable, "-m", "tests.sync.sparkplug.rig", str(folder), url]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


async def test_it_is_born_with_all_it_will_tell_and_then_tells_what_changes(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url)
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        born = host.births[0].values
        assert born["Properties/Version"] == VERSION
        assert born["Health/Status"] == "healthy"
        assert born["Domains/audio/P95 ms"] == 12.5
        assert born["Hardware/Accelerator Temperature C"] is None
        assert (born["Ledger/Produced"], born["Ledger/Dropped"]) == (10, 1)
        site.shows(ledger=Balance(11, 4, 6, {"full": 1}), accelerator_c=61.0, cpu_c=50.4)
        await eventually(lambda: host.values["Hardware/Accelerator Temperature C"], "the data")
        assert [one.values for one in host.of("NDATA")] == [
            {"Ledger/Produced": 11, "Ledger/Held": 6, "Hardware/Accelerator Temperature C": 61.0}
        ]
        site.shows(cpu_c=50.6, accelerator_c=None, ledger=None)
        await eventually(lambda: host.values["Hardware/CPU Temperature C"] == 50.6, "the data")
        assert host.values["Ledger/Produced"] is None
        assert host.values["Hardware/Accelerator Temperature C"] is None


async def test_a_condition_is_told_at_once(tmp_path: Path, broker: Mosquitto, host: Host) -> None:
    site = Site(tmp_path, broker.url, sample_s=3600)
    site.conditions.hold("clock_untrusted", "clock", "note", "a", "b")

    async def look() -> Seen:
        found = site.conditions.all()
        return Seen(
            **{**{f: getattr(SEEN, f) for f in Seen.__struct_fields__}, "conditions": found}
        )

    site.look = look  # type: ignore[method-assign]
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        site.conditions.hold("store_full", "store", "critical", "full", "empty it")
        await eventually(lambda: host.values["Health/Problems"] == 1, "the condition")
        assert host.values["Health/Conditions"] == "store_full store, clock_untrusted clock"
        assert site.conditions.status() == "unhealthy"


async def test_the_numbers_have_no_gap_and_begin_again_after_255(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url)
    async with site.born() as node:
        await eventually(lambda: host.births, "the birth")
        for number in range(1, 270):
            site.shows(backlog_records=number, backlog_bytes=-number)
            node._pulse.tell()
            await eventually(lambda: len(host.got) > number, "the data")  # noqa: B023
        assert [one.payload.seq for one in host.got] == [number % 256 for number in range(270)]
        assert host.values["Sync/Backlog Bytes"] == -269


async def test_a_host_may_ask_for_another_birth(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url)
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        site.shows(paused=True)
        await eventually(lambda: host.values["Sync/Paused"], "the data")
        host.command(command(("Node Control/Rebirth", True)))
        await eventually(lambda: len(host.births) == 2, "the other birth")
        first, second = host.births
        assert first.bdseq == second.bdseq  # ...-rebirth-action-3
        assert second.values["Sync/Paused"] is True
        host.command(command(("Node Control/Rebirth", False)))  # asks for nothing
        site.shows(paused=False)
        await eventually(lambda: host.values["Sync/Paused"] is False, "the data goes on")
        assert len(host.births) == 2
        assert not site.orders


async def test_what_comes_is_born_first_and_what_goes_is_null(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    site = Site(tmp_path, broker.url)
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        pause = host.alias("Sync/Paused")
        site.shows(domains={**SEEN.domains, "a-new": DomainSeen(False, "", None)})
        await eventually(lambda: len(host.births) == 2, "the birth of the domain")
        assert host.values["Domains/a-new/Ready"] is False
        assert host.alias("Sync/Paused") == pause  # a write may be on its way
        site.shows(domains=SEEN.domains)
        await eventually(lambda: host.values["Domains/a-new/Ready"] is None, "it is gone")
        assert len(host.births) == 2


async def test_a_killed_process_dies_by_its_will_and_each_birth_has_a_number_of_its_own(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    for number in range(2):
        with running(Process(tmp_path, broker.url)):
            await eventually(lambda: len(host.births) == number + 1, "the birth")  # noqa: B023
        await eventually(lambda: len(host.deaths) == number + 1, "the death")  # noqa: B023
        assert not host.online
    assert [one.bdseq for one in host.births] == [0, 1]
    assert [one.bdseq for one in host.deaths] == [0, 1]


async def test_one_that_is_cut_off_dies_with_the_number_of_its_birth_and_comes_back(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    async with Proxy(broker) as proxy, Site(tmp_path, proxy.url).born():
        for number in range(3):
            await eventually(lambda: len(host.births) > number, "the birth")  # noqa: B023
            proxy.cut()
            await eventually(lambda: len(host.deaths) > number, "the death")  # noqa: B023
        await eventually(lambda: host.online, "it is back")
    assert [one.bdseq for one in host.deaths[:3]] == [0, 1, 2]
    assert [one.bdseq for one in host.births] == [0, 1, 2, 3]


async def test_the_number_of_a_birth_begins_again_after_255(
    tmp_path: Path, broker: Mosquitto, host: Host
) -> None:
    (tmp_path / "sparkplug.json").write_text('{"bdseq": 254}')
    for number, bdseq in enumerate((255, 0)):
        async with Site(tmp_path, broker.url).born():
            await eventually(lambda: len(host.births) > number, "the birth")  # noqa: B023
        assert host.births[-1].bdseq == bdseq
        deaths = lambda: {one.bdseq for one in host.deaths}  # noqa: E731
        await eventually(lambda: bdseq in deaths(), "the death")  # noqa: B023


async def test_connects_that_never_went_out_count_for_nothing(tmp_path: Path) -> None:
    """bdSeq grows by one from CONNECT to CONNECT, however long there is no broker."""
    broker = Mosquitto(tmp_path)
    site = Site(tmp_path, broker.url)
    async with site.born() as node:
        tries, will = list[int](), node.will

        async def counted() -> Will:
            tries.append(1)
            return await will()

        node.will = counted  # type: ignore[method-assign]
        await eventually(lambda: "refused" in site.cause("sparkplug_down"), "no broker")
        births = []
        for _ in range(2):
            with running(broker):
                host = Host(broker.port)
                await eventually(lambda: host.births, "the birth")  # noqa: B023
                births.append(host.births[0].bdseq)
                host.close()
                assert not host.faults
            await eventually(lambda: site.holds("sparkplug_down"), "the broker is gone")
            tried = len(tries)
            await eventually(lambda: len(tries) > tried + 1, "it was tried again")  # noqa: B023
        assert births == [0, 1]


async def test_its_connect_has_the_will_and_keeps_no_session(tmp_path: Path) -> None:
    (tmp_path / "sparkplug.json").write_text('{"bdseq": 6}')
    async with Stub() as stub, Site(tmp_path, stub.url).born():
        await eventually(lambda: stub.connects, "the CONNECT")
    protocol, flags, rest = stub.asked[0][:7], stub.asked[0][7], stub.asked[0][10:]
    assert protocol == b"\x00\x04MQTT\x05"
    clean_start, will, qos_1, retain = flags & 2, flags & 4, flags >> 3 & 3, flags & 32
    assert (clean_start, will, qos_1, retain) == (2, 4, 1, 0)
    # Receive maximum and packet size; no expiry, so the session ends with the connection.
    assert rest[1 : 1 + rest[0]] == bytes([0x21, 0, 100, 0x27, 0, 16, 0, 0])
    client_id, rest = cut(rest[1 + rest[0] :])
    topic, payload = cut(rest[1 + rest[0] :])  # behind the will's properties
    assert client_id == b"holdfast-dev-sparkplug"
    assert topic == b"spBv1.0/Plant 1/NDEATH/dev"
    death = parsed(cut(payload)[0])
    assert [(one.name, one.long_value) for one in death.metrics] == [("bdSeq", 7)]


@pytest.mark.parametrize(("version", "deaths"), [(MQTT5, 2), (MQTT311, 1)])
async def test_one_that_ends_in_order_says_so(
    tmp_path: Path, broker: Mosquitto, host: Host, version: object, deaths: int
) -> None:
    """With MQTT 5, DISCONNECT has the reason "with will", so that the will comes, too."""
    async with Site(tmp_path, broker.url).born(version):
        await eventually(lambda: host.births, "the birth")
    await eventually(lambda: len(host.deaths) == deaths, "the deaths")
    assert {one.bdseq for one in host.deaths} == {host.births[0].bdseq}


async def test_a_fault_in_it_is_a_condition_and_it_begins_anew(
    tmp_path: Path, broker: Mosquitto, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "FAULT_S", 0.01)
    site = Site(tmp_path, broker.url)
    whole, broken = site.look, asyncio.Event()

    async def look() -> Seen:
        if broken.is_set():
            raise ZeroDivisionError("nobody expected it")
        return await whole()

    site.look = look  # type: ignore[method-assign]
    async with site.born():
        await eventually(lambda: host.births, "the birth")
        broken.set()
        await eventually(lambda: "nobody expected" in site.cause("sparkplug_down"), "it is told")
        broken.clear()
        await eventually(lambda: host.online and not site.holds("sparkplug_down"), "it is back")
