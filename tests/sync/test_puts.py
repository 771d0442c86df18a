"""Blobs by PUT, from a real store over a real broker to a store that checks what comes."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.errors import LinkError
from agent.protocol import grants
from agent.protocol.grants import Grant
from agent.sync.up import puts
from agent.sync.up.objects import Body
from tests.object_store import ObjectStore
from tests.outside import ROOT, Mosquitto, free_port
from tests.sync.putting import BLOB, DEVICE, Cloud, Device, Toll, cloud

DEADLINE_S = 90.0
pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puts, "RETRY_S", 0.01)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    found = Mosquitto(tmp_path)
    found.start()
    yield found
    found.kill()


@pytest_asyncio.fixture
async def store() -> AsyncIterator[ObjectStore]:
    async with ObjectStore() as found:
        yield found


@pytest_asyncio.fixture
async def far(tmp_path: Path, broker: Mosquitto, store: ObjectStore) -> AsyncIterator[Cloud]:
    async with cloud(broker.port, tmp_path, store) as found:
        yield found


def kept(store: ObjectStore) -> list[bytes]:
    return [store.objects[key] for key in sorted(store.objects)]


async def test_a_blob_is_put_and_counts_once_the_cloud_has_seen_it(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    async with Device(tmp_path, broker.url).at_work() as device:
        assert await device.put(live=True)
        assert far.noted() == [(DEVICE, "x.segments", 1, len(BLOB))]
        assert await device.put(1)
        epoch = device.name[0]
        assert sorted(store.objects) == [f"dev/{epoch}/x.segments/{n}" for n in (1, 2)]
        assert kept(store) == [BLOB, BLOB[:70_000]]
        assert device.toll.sent_bytes == len(BLOB) + 70_000
        assert device.toll.live == {True, False}
        assert not device.conditions.all()


async def test_what_is_there_already_is_not_sent_again(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    async with Device(tmp_path, broker.url).at_work() as device:
        assert await device.put()
    async with Device(tmp_path, broker.url).at_work() as again:  # its ack was lost, it restarted
        assert await again.put()
        assert again.toll.sent_bytes == 0
    assert store.statuses_of("PUT") == [200]


async def test_what_lies_there_and_is_not_the_blob_is_replaced(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    async with Device(tmp_path, broker.url).at_work() as device:
        key = f"dev/{device.name[0]}/x.segments/1"
        store.objects[key] = bytes(len(BLOB))
        assert await device.put()
        assert store.objects[key] == BLOB


@pytest.mark.parametrize(
    ("trouble", "answers"),
    [
        ({"cuts": [1, 150_000]}, [200]),
        ({"statuses": [503, 503]}, [503, 503, 200]),
        ({"late_s": [901.0]}, [403, 200]),
        ({"loses": 2}, [200, 200, 200]),
    ],
)
async def test_a_put_that_fails_begins_again(
    tmp_path: Path,
    broker: Mosquitto,
    store: ObjectStore,
    far: Cloud,
    trouble: dict[str, object],
    answers: list[int],
) -> None:
    for name, value in trouble.items():
        setattr(store, name, value)
    async with Device(tmp_path, broker.url).at_work() as device:
        assert await device.put()
        assert kept(store) == [BLOB]
        assert store.statuses_of("PUT") == answers
        assert not device.conditions.all()


async def test_a_store_that_stays_ill_is_left_alone_for_a_while(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    store.statuses = [503] * 3
    async with Device(tmp_path, broker.url).at_work() as device:
        assert not await device.put()
        assert device.says("127.0.0.1 answered 503 SlowDown")
        assert not await device.put(1)
        assert store.statuses_of("PUT") == [503, 503, 503]
        assert not far.noted()
        device.puts._rests_until = 0.0
        assert await device.put(1)
        assert not device.conditions.all()


async def test_without_an_object_store_the_cloud_refuses_and_says_why(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with (
        cloud(broker.port, tmp_path, None),
        Device(tmp_path, broker.url).at_work() as device,
    ):
        assert not await device.put()
        assert device.says("the cloud refused: no object store is configured")


async def test_an_object_store_that_the_cloud_cannot_reach_is_a_refusal(
    tmp_path: Path, broker: Mosquitto
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with (
        cloud(broker.port, tmp_path, None, nobody),
        Device(tmp_path, broker.url).at_work() as device,
    ):
        assert not await device.put()
        assert device.says("the cloud refused: the object store does not answer")


async def test_a_cloud_that_does_not_answer_is_not_waited_for_twice(
    tmp_path: Path, broker: Mosquitto, far: Cloud
) -> None:
    far.deaf = True
    async with Device(tmp_path, broker.url, ack_timeout_s=0.2).at_work() as device:
        assert not await device.put()
        assert device.says("the cloud did not answer")
        paid_bytes = device.toll.paid_bytes
        assert not await device.put(1)
        assert device.toll.paid_bytes == paid_bytes


async def test_an_ask_that_got_lost_is_asked_again(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    far.deaf = True
    async with Device(tmp_path, broker.url, ack_timeout_s=15.0).at_work() as device:
        putting = asyncio.create_task(device.put())
        while not far.asks:
            await asyncio.sleep(0.01)
        far.deaf = False
        assert await asyncio.wait_for(putting, DEADLINE_S)
        assert far.noted()


async def test_a_link_that_ends_is_not_the_clouds_silence(
    tmp_path: Path, broker: Mosquitto, far: Cloud
) -> None:
    far.deaf = True
    async with Device(tmp_path, broker.url, ack_timeout_s=1.0).at_work() as device:
        putting = asyncio.create_task(device.put())
        broker.kill()
        with pytest.raises(LinkError, match="the broker went"):
            await putting
        assert not device.conditions.all()


async def test_a_store_that_stops_reading_is_given_up(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    store.hold_after_bytes = 1
    async with Device(tmp_path, broker.url, ack_timeout_s=2.0).at_work() as device:
        assert not await device.put()
        assert device.says("no answer in time")
        assert far.asks == 1, "a try more would have taken as long again"
        store.go_on.set()


async def test_while_the_pace_holds_a_step_back_no_time_runs() -> None:
    ran: list[bool] = []

    class Watching(Toll):
        async def take(self, size_bytes: int, *, live: bool) -> None:
            ran.append(deadline.when() is not None)
            await super().take(size_bytes, live=live)

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(20_000)

    toll = Watching()
    async with asyncio.timeout(None) as deadline:
        body = Body(pieces, toll, toll, live=True)
        async for _ in body.steps(deadline, DEADLINE_S):
            assert deadline.when() is not None
    assert ran == [False, False, False]


async def test_a_record_that_is_purged_meanwhile_is_done(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    async with Device(tmp_path, broker.url).at_work() as device:
        taken, take = 0, device.toll.take

        async def purge_in_the_middle(size_bytes: int, *, live: bool) -> None:
            nonlocal taken
            taken += size_bytes
            if taken > 100_000:
                await device.purge()
            await take(size_bytes, live=live)

        device.toll.take = purge_in_the_middle  # type: ignore[method-assign]
        assert await device.put()
        assert not store.objects
        assert not device.conditions.all()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (b"{", "not a Grant"),
        (b" " * grants.BYTES_MAX * 2, "expected 16384 at most"),
        ({"url": "https://s", "refused": "no"}, "one of stored, url and refused"),
        ({"url": "https://s", "headers": {"Host": "evil"}}, "must not set these headers: Host"),
    ],
)
async def test_a_grant_that_makes_no_sense_is_told_and_not_followed(
    tmp_path: Path, broker: Mosquitto, word: bytes | dict[str, object], told: str
) -> None:
    device = Device(tmp_path, broker.url)
    if isinstance(word, dict):
        word = grants.encode(Grant(epoch="e", stream="s", seq=1, sha256="0" * 64, **word))
    device.puts.heard(word)
    assert device.says(told)


async def test_a_grant_is_never_weaker_than_the_link(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    secure = Device(tmp_path, broker.url, broker_url="mqtts://far.example")
    async with secure.at_work() as device:
        assert not await device.put()
        assert device.says("a URL with http; expected https")
        assert not store.statuses_of("PUT")


async def test_a_device_that_is_killed_in_a_put_begins_it_again(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    store.hold_after_bytes = len(BLOB) // 2
    child = await process(tmp_path, broker)
    try:
        await asyncio.wait_for(store.holding.wait(), DEADLINE_S)
    finally:
        child.kill()
        await child.wait()
    store.hold_after_bytes = None
    store.go_on.set()
    assert not far.noted()
    again = await process(tmp_path, broker)
    told, _ = await asyncio.wait_for(again.communicate(), DEADLINE_S)
    assert told.startswith(b"1 ")
    assert kept(store) == [BLOB]
    assert far.noted() == [(DEVICE, "x.segments", 1, len(BLOB))]


async def test_a_large_blob_is_never_in_memory(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore, far: Cloud
) -> None:
    large = BLOB * 200
    async with Device(tmp_path, broker.url, [large]).at_work():
        pass  # that it is in the store
    child = await process(tmp_path, broker)
    told, _ = await asyncio.wait_for(child.communicate(), DEADLINE_S)
    put, grown_bytes = map(int, told.split())
    assert put
    assert grown_bytes < len(large) // 4
    assert kept(store) == [large]


async def process(folder: Path, broker: Mosquitto) -> asyncio.subprocess.Process:
    """A device that puts its first blob, and says so."""
    command = (sys.executable, "-m", "tests.sync.putting", str(folder), broker.url)
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)


@pytest.mark.parametrize("known", [True, False])
async def test_over_tls_the_authority_of_the_site_is_believed(
    tmp_path: Path, broker: Mosquitto, known: bool
) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=site", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "ca"), "-days", "2"),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "ca", tmp_path / "key")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    told = {"broker_url": "mqtts://far.example", "ca_file": str(tmp_path / "ca") if known else None}
    async with (
        ObjectStore(tls=tls) as store,
        cloud(broker.port, tmp_path, store, trusted=trusted),
        Device(tmp_path, broker.url, **told).at_work() as device,
    ):
        assert await device.put() is known
        assert device.says("CERTIFICATE_VERIFY_FAILED") is not known
        assert bool(store.objects) is known


async def test_a_cloud_that_restarts_in_a_put_sees_the_object_all_the_same(
    tmp_path: Path, broker: Mosquitto, store: ObjectStore
) -> None:
    store.hold_after_bytes = len(BLOB) // 2
    async with Device(tmp_path, broker.url, ack_timeout_s=30.0).at_work() as device:
        async with cloud(broker.port, tmp_path, store):
            putting = asyncio.create_task(device.put())
            await asyncio.wait_for(store.holding.wait(), DEADLINE_S)
        async with cloud(broker.port, tmp_path, store) as next_life:
            store.go_on.set()
            assert await asyncio.wait_for(putting, DEADLINE_S)
            assert next_life.noted() == [(DEVICE, "x.segments", 1, len(BLOB))]
    assert store.statuses_of("PUT") == [200]
