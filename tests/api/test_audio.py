"""Recordings by HTTP: a real agent, and real sound in several formats."""

import asyncio
import io
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import soundfile

from agent.api.routes.audio import BODIES_MAX
from agent.audio.places import SOURCES_MAX
from tests.api.checked import whole
from tests.e2e.sound import SAMPLES, joined
from tests.outside import Device, running, until

SECONDS = 12.0
FORMATS = {"a.wav": ("WAV", "PCM_16"), "a.flac": ("FLAC", "PCM_16"), "a.opus": ("OGG", "OPUS")}
URL = "http://localhost/api/v1/audio"


def source_of(name: str) -> str:
    return "file-" + name.replace(".", "-")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An agent that has three recordings as files, too."""
    folder = tmp_path_factory.mktemp("audio")
    sound = joined(SAMPLES, 3, SECONDS)
    for name, (kind, subtype) in FORMATS.items():
        soundfile.write(folder / name, sound, 16_000, format=kind, subtype=subtype)
    sources = [
        {"kind": "file", "name": source_of(name), "path": str(folder / name)} for name in FORMATS
    ]
    made = Device(folder, {"audio": {"sources": sources}})
    with running(made):
        yield made


@asynccontextmanager
async def asking(device: Device) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(device.socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def post(
    device: Device, content: bytes, query: str = "", **headers: str
) -> tuple[int, dict[str, Any], Any]:
    async with (
        asking(device) as session,
        session.post(f"{URL}?{query}", data=io.BytesIO(content), headers=headers) as answer,
    ):
        told = await answer.read()
        url = str(answer.url.relative())
        whole().check("POST", url, content, answer.status, answer.headers, told)
        return answer.status, json.loads(told), answer.headers


async def get(device: Device, door: str, **headers: str) -> tuple[int, bytes, Any]:
    async with asking(device) as session, session.get(URL + door, headers=headers) as answer:
        found = await answer.read()
        url = str(answer.url.relative())
        whole().check("GET", url, None, answer.status, answer.headers, found)
        return answer.status, found, answer.headers


async def segments_of(device: Device, source: str) -> list[dict[str, Any]]:
    found = json.loads((await get(device, "/segments?count=200"))[1])["segments"]
    return sorted((one for one in found if one["source"] == source), key=lambda one: one["seq"])


async def sound_of(device: Device, segment: dict[str, Any]) -> np.ndarray:
    status, content, _ = await get(device, f"/segments/{segment['stream']}/{segment['seq']}")
    assert (status, len(content)) == (200, segment["size_bytes"])
    return soundfile.read(io.BytesIO(content), dtype="int16")[0].astype(int)


@pytest.mark.parametrize("name", FORMATS)
async def test_a_post_becomes_what_a_file_becomes(device: Device, name: str) -> None:
    content = (device.folder / name).read_bytes()
    status, told, _ = await post(device, content, f"source=post&name={name}&wait_s=60")
    assert (status, told["status"], told["name"]) == (200, "heard", name)
    assert told["segments"]
    until(lambda: device.ledger(f"{source_of(name)}.raw")["held"] == 0, "the file is heard")
    until(lambda: device.ledger(f"{source_of(name)}.raw")["produced"], "the file was taken in")
    filed = await segments_of(device, source_of(name))
    place = [(one["start_s"], one["length_s"]) for one in filed]
    assert [(one["start_s"], one["length_s"]) for one in told["segments"]] == place
    for ours, theirs in zip(told["segments"], filed, strict=True):
        apart = np.abs(await sound_of(device, ours) - await sound_of(device, theirs))
        assert apart.max() <= 2, "not the same sound"


async def test_the_same_content_is_taken_in_once(device: Device) -> None:
    content = (device.folder / "a.flac").read_bytes()
    _, first, _ = await post(device, content, "source=twice&wait_s=60")
    before = device.ledger("twice.raw")
    status, again, _ = await post(device, content, "source=twice&wait_s=60")
    assert (status, again["take"]) == (200, first["take"])
    assert [one["id"] for one in again["segments"]] == [one["id"] for one in first["segments"]]
    assert device.ledger("twice.raw") == before
    _, other, _ = await post(device, content, "source=twice&name=other&wait_s=60")
    assert other["take"] != first["take"]


async def test_who_does_not_wait_is_told_where_to_look(device: Device) -> None:
    content = (device.folder / "a.wav").read_bytes()
    status, told, headers = await post(device, content, "source=later", Prefer="respond-async")
    assert (status, told["status"]) in ((202, "hearing"), (200, "heard"))
    where = headers.get("Location", f"/api/v1/audio/takes/later/{told['take']}")
    for _ in range(600):
        found = json.loads((await get(device, where.removeprefix("/api/v1/audio")))[1])
        if found["status"] == "heard":
            break
        await asyncio.sleep(0.05)
    assert found["status"] == "heard"
    assert found["samples"] == int(SECONDS * 16_000)
    assert [one["seq"] for one in found["segments"]] == list(range(1, len(found["segments"]) + 1))
    assert (await get(device, "/takes/later/999"))[0] == 404


async def test_another_preference_is_no_reason_not_to_wait(device: Device) -> None:
    content = (device.folder / "a.wav").read_bytes()
    asked = "source=other-preference&wait_s=60"
    status, told, headers = await post(device, content, asked, Prefer="x=respond-async")
    assert (status, told["status"], "Location" in headers) == (200, "heard", False)


async def test_a_segment_can_be_had_in_parts(device: Device) -> None:
    await post(device, (device.folder / "a.flac").read_bytes(), "source=parts&wait_s=60")
    one = (await segments_of(device, "parts"))[0]
    door = f"/segments/{one['stream']}/{one['seq']}"
    status, whole, headers = await get(device, door)
    assert (status, headers["Content-Type"]) == (200, "audio/flac")
    assert headers["ETag"] == f'"{one["sha256"]}"'
    status, part, headers = await get(device, door, Range="bytes=100-199")
    assert (status, part) == (206, whole[100:200])
    assert headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
    status, part, _ = await get(device, door, Range="bytes=-7")
    assert (status, part) == (206, whole[-7:])
    for none in (f"bytes={len(whole)}-", "bytes=-0", "Bytes=-00", "bytes=2-1"):
        status, told, headers = await get(device, door, Range=none)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{len(whole)}"), none
        assert json.loads(told)["hint"]
    assert (await get(device, door, **{"If-None-Match": f'"{one["sha256"]}"'}))[0] == 304
    other = {"Range": "bytes=0-9", "If-Range": '"another"'}
    assert (await get(device, door, **other))[1] == whole
    assert (await get(device, "/segments/parts.segments/999999"))[0] == 404
    assert (await get(device, "/segments/parts.raw/1"))[0] == 404


def silence(hours: int) -> bytes:
    """So long a WAV of 8-bit 4 kHz sound would be; its header says so, and it is not there."""
    size = hours * 3600 * 4000
    form = struct.pack("<IHHIIHH", 16, 1, 1, 4000, 4000, 1, 8)
    return (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + form
        + b"data"
        + struct.pack("<I", size)
    )


def bomb(folder: Path) -> bytes:
    """A second more of nothing than a recording may have, in a FLAC that is small."""
    path = folder / "bomb.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, format="FLAC", subtype="PCM_16") as file:
        nothing = np.zeros(8000, np.int16)
        for _ in range(3601):
            file.write(nothing)
    return path.read_bytes()


async def test_what_is_no_recording_is_refused_and_leaves_no_trace(
    device: Device, tmp_path: Path
) -> None:
    flac = (device.folder / "a.flac").read_bytes()
    for content, refused, word in [
        (b"", 400, "is empty"),
        (b"\x7fELF" + bytes(2000), 400, "begins with"),
        (b"OggS" + bytes(2000), 400, "not a recording"),
        (flac[: len(flac) // 2], 400, "breaks off"),
        (silence(1), 400, "no sound in it"),
        (bomb(tmp_path), 413, "may have 3600 s (115200000 bytes as it is kept)"),
    ]:
        status, told, _ = await post(device, content, "source=bad")
        assert status == refused, told
        assert word in told["error"]
        assert told["hint"]
    assert "bad.raw" not in device.status()["ledger"]
    assert list((device.store.parent / "incoming").iterdir()) == []


async def test_a_folder_that_takes_no_file_is_said(device: Device) -> None:
    """As where the disk has no inode left, or can be read alone."""
    folder = device.store.parent / "incoming"
    folder.rename(away := folder.with_name("away"))
    try:
        status, told, headers = await post(device, b"RIFF" + bytes(100))
    finally:
        away.rename(folder)
    assert (status, told["hint"], "Retry-After" in headers) == (507, "look at the disk", True), told
    assert "Traceback" not in device.log.read_text()


async def test_a_name_that_is_configured_is_refused(device: Device) -> None:
    flac = (device.folder / "a.flac").read_bytes()
    status, told, _ = await post(device, flac, f"source={source_of('a.wav')}")
    assert status == 409
    assert "configuration" in told["error"]
    assert (await post(device, flac, "source=No Such Name"))[0] == 400


async def test_a_form_is_told_to_send_the_file_itself(device: Device) -> None:
    form = aiohttp.FormData()
    form.add_field("file", (device.folder / "a.wav").read_bytes(), filename="a.wav")
    async with asking(device) as session, session.post(f"{URL}?source=form", data=form) as answer:
        told = await answer.json()
    assert (answer.status, "multipart/form-data" in told["error"]) == (400, True)
    assert "curl --data-binary @file.wav" in told["hint"]
    assert "form.raw" not in device.status()["ledger"]


async def test_where_the_takes_of_a_configured_source_are_is_said(device: Device) -> None:
    status, told, _ = await get(device, f"/takes/{source_of('a.wav')}/999")
    assert (status, "configuration" in json.loads(told)["hint"]) == (404, True)
    status, told, _ = await get(device, "/takes/nobody/999")
    assert (status, "holdfast audio send" in json.loads(told)["hint"]) == (404, True)


async def test_a_name_of_which_nothing_is_held_gives_its_place_to_a_new_one(
    tmp_path: Path,
) -> None:
    made, quiet = Device(tmp_path, {}), io.BytesIO()
    soundfile.write(quiet, np.zeros(3200, np.int16), 16_000, format="WAV")
    speech = io.BytesIO()
    soundfile.write(speech, joined(SAMPLES, 3, SECONDS), 16_000, format="WAV")

    async def send(source: str, name: str = "one") -> None:
        asked = f"source={source}&name={name}&wait_s=60"
        status, told, _ = await post(made, quiet.getvalue(), asked)
        assert (status, told["status"]) == (200, "heard"), told

    with running(made):
        await post(made, speech.getvalue(), "source=speaks&wait_s=60")
        await send("n0")
        await send("n1")
        beside = BODIES_MAX - 1  # as many as one caller may send at once
        for first in range(2, SOURCES_MAX - 1, beside):
            names = [f"n{n}" for n in range(first, min(first + beside, SOURCES_MAX - 1))]
            await asyncio.gather(*map(send, names))
        await send("n0", "again")
        await send("late")
        ledger = made.status()["ledger"]
        assert "n1.raw" not in ledger, "it is unused the longest"
        assert {"speaks.raw", "n0.raw", "late.raw"} <= set(ledger), "it holds, is newer, is new"
        assert (await get(made, "/takes/n1/3"))[0] == 404

        made.kill()
        made.start()
        assert "n1.raw" not in made.status()["ledger"]
        await send("n1")
        assert made.ledger("n1.raw") == {
            **{"produced": 4, "delivered": 0, "held": 0},
            **{"dropped": {"processed": 4}},
        }, "its seqs went on"
        assert len([one for one in made.status()["ledger"] if one.endswith(".raw")]) == SOURCES_MAX


async def test_a_store_that_has_no_room_says_so(tmp_path: Path) -> None:
    made = Device(tmp_path, {"store": {"path": str(tmp_path / "s.db"), "bytes_max": 1024**2}})
    content = io.BytesIO()
    soundfile.write(content, joined(SAMPLES, 1, 60.0), 16_000, format="FLAC")
    with running(made):
        status, told, headers = await post(made, content.getvalue(), "source=full")
        assert (status, headers["Retry-After"]) == (507, "10")
        assert "no room" in told["error"]
        assert "full.raw" not in made.status()["ledger"]
