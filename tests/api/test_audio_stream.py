"""Live sound by WebSocket: a real agent, killed in the middle, and clients of all kinds."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import yaml

from agent.api.entry.limits import LIMITS
from agent.inference.catalog import Catalog
from agent.inference.engines.speech import Engine
from agent.inference.wire import Part
from tests.api.checked import whole
from tests.audio.bed import soon
from tests.e2e.sound import SAMPLES, joined
from tests.outside import DEADLINE_S, ROOT, Device, free_port, running, until

HOP = 256
URL = "http://localhost/api/v1/audio/stream"
END = '{"event":"end"}'
DEEP = '{"event":"end","more":' + "[" * 100_000


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("stream")
    api = {"port": free_port(), "socket": str(folder / "holdfast.sock")}  # that has few places
    made = Device(folder, {"api": api})
    with running(made):
        yield made


def pcm(seed: int, seconds: float) -> np.ndarray:
    return np.rint(joined(SAMPLES, seed, seconds) * 32767).astype(np.int16)


def offline(sound: np.ndarray) -> np.ndarray:
    """The same sound through the engine that a worker has, in one call."""
    engine = Engine(**Catalog(ROOT / "models").newest("speech").options)
    memories = np.zeros((1, engine.memory_size), np.float32)
    answer = engine.listen([Part(len(sound), True)], sound, memories)
    return answer.clean[: len(sound)]


class Client:
    """A connection; `got` is the denoised sound, `events` what was told."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.got = bytearray()
        self.events: list[dict[str, Any]] = []

    async def send(self, sound: np.ndarray, samples: int = HOP) -> None:
        for at in range(0, len(sound), samples):
            await self.socket.send_bytes(sound[at : at + samples].tobytes())

    async def read(self, until: str = "") -> None:
        """To the end, or to an event."""
        async with asyncio.timeout(DEADLINE_S):
            async for message in self.socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.got += message.data
                else:
                    whole().check_message("/api/v1/audio/stream", message.data)
                    self.events.append(json.loads(message.data))
                    if self.events[-1]["event"] == until:
                        return

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    @property
    def clean(self) -> np.ndarray:
        return np.frombuffer(bytes(self.got), np.int16)


@asynccontextmanager
async def talking(device: Device, query: str) -> AsyncIterator[Client]:
    port = yaml.safe_load(device.config.read_text())["api"]["port"]
    connector = None if port else aiohttp.UnixConnector(str(device.socket))
    url = URL.replace("localhost", f"127.0.0.1:{port}") if port else URL
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(f"{url}?{query}", max_msg_size=0) as socket,
    ):
        yield Client(socket)


async def through(device: Device, query: str, sound: np.ndarray, samples: int = HOP) -> Client:
    """All of it, there and back."""
    async with talking(device, query) as client:
        reading = asyncio.create_task(client.read())
        await client.send(sound, samples)
        await client.socket.send_str(END)
        await reading
        assert client.socket.close_code == 1000, client.events
    return client


async def refused(device: Device, query: str) -> int:
    with pytest.raises(aiohttp.WSServerHandshakeError) as info:
        async with talking(device, query):
            pass
    return info.value.status


@pytest.mark.parametrize("samples", [HOP, 100, 4000])
async def test_what_comes_back_is_the_same_sound_denoised(device: Device, samples: int) -> None:
    sound = pcm(1, 10.0)[:-77]  # no whole number of hops
    client = await through(device, f"source=same-{samples}", sound, samples)
    wanted = offline(sound)
    assert len(client.clean) == len(sound)
    assert np.abs(client.clean.astype(int) - wanted).max() <= 2, "samples are lost or repeated"
    turns = [e["event"] for e in client.events if e["event"].startswith("speech")]
    assert turns[:2] == ["speech_begin", "speech_end"]
    assert len(client.told("speech_begin")) == len(client.told("speech_end"))
    (end,) = client.told("end")
    assert (end["samples"], end["heard"]) == (len(sound), True)
    segments = client.told("segment")
    assert [one["seq"] for one in segments] == list(range(1, end["segments"] + 1))
    assert segments
    assert {one["take"] for one in segments} == {end["take"]}
    assert client.events[-1] is end


async def test_nothing_is_kept_where_nothing_shall_be(device: Device) -> None:
    sound = pcm(2, 4.0)
    client = await through(device, "source=gone&keep=false", sound)
    assert len(client.clean) == len(sound)
    assert client.told("end")[0]["heard"] is None
    assert not client.told("segment")
    assert "gone.raw" not in device.status()["ledger"]


async def test_another_rate_and_more_channels(device: Device) -> None:
    sound = np.repeat(pcm(2, 3.0), 3)  # 48 kHz, roughly
    stereo = np.stack([sound, sound], axis=1)
    client = await through(device, "source=stereo&keep=false&rate_hz=48000&channels=2", stereo, 960)
    assert abs(len(client.clean) - 3 * 16_000) <= 2


async def test_a_source_has_one_stream_at_a_time(device: Device) -> None:
    async with talking(device, "source=one") as client:
        await client.read("ready")
        assert await refused(device, "source=one") == 409
        assert await refused(device, "source=one&rate_hz=7") == 400
        assert await refused(device, "source=O%20ne") == 400
    async with asyncio.timeout(DEADLINE_S):
        while "one" in await busy(device, "one"):
            await asyncio.sleep(0.02)


async def busy(device: Device, source: str) -> list[str]:
    """The source, while its stream is not over."""
    try:
        async with talking(device, f"source={source}&keep=false"):
            return []
    except aiohttp.WSServerHandshakeError:
        return [source]


async def test_what_is_no_frame_and_no_order_ends_the_stream(device: Device) -> None:
    for number, wrong in enumerate([b"odd", '{"event":"sing"}', "no JSON", DEEP]):
        async with talking(device, f"source=wrong{number}&keep=false") as client:
            if isinstance(wrong, bytes):
                await client.socket.send_bytes(wrong)
            else:
                await client.socket.send_str(wrong)
            await client.read()
            assert client.socket.close_code == 1008
            assert client.told("error")[0]["hint"]
    async with talking(device, "source=long&keep=false") as client:
        with suppress(ConnectionError):  # the agent does not read all of it
            await client.socket.send_bytes(bytes(600_000))
        await client.read()
        assert client.socket.close_code in (1006, 1009)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(device.socket))) as session,
        session.get(URL) as answer,
    ):
        assert answer.status == 400
        assert "WebSocket" in (await answer.json())["error"]


async def test_what_a_client_calls_its_stream_is_in_no_log(device: Device) -> None:
    query = "source=quiet&keep=false&name=hf_told-to-nobody"
    async with talking(device, query) as client:
        await client.socket.send_bytes(b"odd")
        await client.read()
    until(lambda: "stream of quiet: let go" in device.log.read_text(), "it is in the log")
    assert "hf_told-to-nobody" not in device.log.read_text()


async def test_streams_do_not_take_the_last_places(device: Device) -> None:
    connector = aiohttp.UnixConnector(str(device.socket), limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, AsyncExitStack() as held:
        with pytest.raises(aiohttp.WSServerHandshakeError) as info:
            for number in range(LIMITS.socket_places):
                url = f"{URL}?source=many{number}&keep=false"
                await held.enter_async_context(session.ws_connect(url))
        assert info.value.status == 503
        assert info.value.headers is not None
        assert int(info.value.headers["Retry-After"]) > 0
        assert number > LIMITS.socket_places / 2
        assert await asyncio.to_thread(device.status)


async def test_twenty_streams_at_once_are_each_answered(device: Device) -> None:
    sounds = [pcm(seed, 2.0 + seed / 10) for seed in range(20)]
    clients = await asyncio.gather(
        *(through(device, f"source=many{i}", sound) for i, sound in enumerate(sounds))
    )
    for client, sound in zip(clients, sounds, strict=True):
        assert len(client.clean) == len(sound)
        assert np.abs(client.clean.astype(int) - offline(sound)).max() <= 2
        assert client.told("end")[0]["heard"] is True


async def test_a_domain_that_is_killed_costs_no_sample(device: Device) -> None:
    sound = pcm(5, 8.0)
    async with talking(device, "source=lost") as client:
        reading = asyncio.create_task(client.read())
        await client.send(sound[: len(sound) // 2])
        before = device.status()["domains"]["audio"]["restarts"]
        os.kill(device.status()["domains"]["audio"]["pid"], signal.SIGKILL)
        await client.send(sound[len(sound) // 2 :])
        await client.socket.send_str(END)
        await reading
    until(lambda: device.status()["domains"]["audio"]["restarts"] > before, "a new worker")
    assert np.abs(client.clean.astype(int) - offline(sound)).max() <= 2
    assert len(client.clean) == len(sound)


async def test_one_that_does_not_read_is_let_go_and_holds_up_nobody(device: Device) -> None:
    sound = pcm(6, 30.0)
    reader, writer = await asyncio.open_unix_connection(str(device.socket), limit=1024)
    writer.write(
        b"GET /api/v1/audio/stream?source=deaf&keep=false HTTP/1.1\r\nHost: localhost\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    message = sound[:16_000].tobytes()
    frame = b"\x82\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message

    async def shout() -> None:
        while True:  # until the agent has had enough
            writer.write(frame)
            await writer.drain()

    shouting = asyncio.create_task(shout())
    other = await through(device, "source=polite&keep=false", pcm(7, 2.0))
    assert len(other.clean) == 32_000
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(shouting, DEADLINE_S)
    assert "the answers were not taken" in device.log.read_text()
    del reader


async def test_what_was_taken_in_before_a_kill_becomes_segments(tmp_path: Path) -> None:
    made = Device(tmp_path, {})
    sound = pcm(8, 20.0)
    with running(made):
        async with talking(made, "source=cut") as client:
            reading = asyncio.create_task(client.read())
            await client.send(sound, 4000)
            await soon(lambda: made.ledger("cut.raw")["produced"] >= 20, "some of it is kept")
            kept = made.ledger("cut.raw")["produced"]
            made.kill()
            await asyncio.gather(reading, return_exceptions=True)
        made.start()
        until(lambda: made.ledger("cut.raw")["held"] == 0, "what was kept is heard")
        raw, segments = made.ledger("cut.raw"), made.ledger("cut.segments")
        assert raw["produced"] >= kept
        assert raw["dropped"] == {"processed": raw["produced"]}
        assert segments["held"] == segments["produced"] > 0
        again = await through(made, "source=cut", sound[:32_000])  # the name can be used again
        assert again.told("end")[0]["heard"] is True
