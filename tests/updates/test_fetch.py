"""Fetching: whole, resumed, from whichever source has it, and what is refused before it begins."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.updates.content import Content
from agent.updates.fetched import NotFetched
from tests.updates.bed import CONTENT, TARGET, Shop, content, forever, serving, silent

DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"{DIGEST}.speech-4.tar"


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path / "shop")
    shop.add(min_free_bytes=1000)
    shop.publish()
    return shop


def staged(tmp_path: Path) -> Path:
    return tmp_path / "device" / "staged"


def begin(tmp_path: Path, data: bytes) -> Path:
    """A part of the content, as a kill leaves it."""
    staged(tmp_path).mkdir(parents=True, exist_ok=True)
    part = staged(tmp_path) / f"{DIGEST}.part"
    part.write_bytes(data)
    return part


async def refused(device: Content, target: str = TARGET) -> NotFetched:
    with pytest.raises(NotFetched) as error:
        await device.fetch(target, silent)
    assert error.value.hint
    assert str(error.value).startswith(f"{error.value.reason}: ")
    return error.value


async def test_folder(tmp_path: Path, shop: Shop) -> None:
    device, told = content(tmp_path / "device", shop, f"file://{shop.served}"), []

    async def tell(share: float, word: str) -> None:
        told.append(share)

    offers = (await device.check()).offers
    assert [(one.target, one.kind, one.version) for one in offers] == [(TARGET, "model", "4")]
    fetched = await device.fetch(TARGET, tell)
    path = Path(fetched.path)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o440
    assert (fetched.kind, fetched.name, fetched.version) == ("model", "speech", "4")
    assert (fetched.digest, fetched.size_bytes) == (DIGEST, len(CONTENT))
    assert fetched.custom["min_free_bytes"] == 1000
    assert fetched.expiry_judged
    assert told[-1] == 1.0
    await device.drop(fetched)
    assert not path.exists()


async def test_there_already(tmp_path: Path, shop: Shop) -> None:
    """What is here is not fetched again, unless the disk has damaged it."""
    async with serving(shop.served) as server:
        device = content(tmp_path / "device", shop, server.url)
        first = await device.fetch(TARGET, silent)
        asked = len(server.asked)
        assert await device.fetch(TARGET, silent) == first
        assert all("targets/" not in path for path, _ in server.asked[asked:])
        Path(first.path).chmod(0o600)
        Path(first.path).write_bytes(CONTENT[:-1] + b"x")
        assert await device.fetch(TARGET, silent) == first
        assert Path(first.path).read_bytes() == CONTENT


async def test_resumed(tmp_path: Path, shop: Shop) -> None:
    begin(tmp_path, CONTENT[:200_001])
    async with serving(shop.served) as server:
        fetched = await content(tmp_path / "device", shop, server.url).fetch(TARGET, silent)
    assert Path(fetched.path).read_bytes() == CONTENT
    wanted = [one for path, one in server.asked if path.endswith(NAME)]
    assert wanted == [f"bytes=200001-{len(CONTENT)}"]


async def test_part_that_a_power_cut_spoilt(tmp_path: Path, shop: Shop) -> None:
    """Right in length and wrong in content: known by the digest, and begun anew, once."""
    begin(tmp_path, bytes(200_000))
    async with serving(shop.served) as server:
        fetched = await content(tmp_path / "device", shop, server.url).fetch(TARGET, silent)
    assert Path(fetched.path).read_bytes() == CONTENT
    assert len([1 for path, _ in server.asked if path.endswith(NAME)]) == 2


async def test_cut_again_and_again(tmp_path: Path, shop: Shop) -> None:
    """Each connection breaks after some bytes: what has come counts, and tries begin anew."""

    async def cut(request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"}
        response = web.StreamResponse(status=206, headers=headers)
        response.content_length = len(CONTENT) - start
        await response.prepare(request)
        await response.write(CONTENT[start : start + 40_000])
        assert request.transport
        request.transport.close()
        return response

    async with serving(shop.served) as server:
        server.odd[NAME] = cut
        fetched = await content(tmp_path / "device", shop, server.url).fetch(TARGET, silent)
    assert Path(fetched.path).read_bytes() == CONTENT
    assert len([1 for path, _ in server.asked if path.endswith(NAME)]) >= 8


async def test_server_without_ranges(tmp_path: Path, shop: Shop) -> None:
    begin(tmp_path, CONTENT[:150_000])

    async def whole(request: web.Request) -> web.StreamResponse:
        return web.Response(body=CONTENT)

    async with serving(shop.served) as server:
        server.odd[NAME] = whole
        fetched = await content(tmp_path / "device", shop, server.url).fetch(TARGET, silent)
    assert Path(fetched.path).read_bytes() == CONTENT


async def answering(tmp_path: Path, shop: Shop, body: bytes) -> NotFetched:
    async def other(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    async with serving(shop.served) as server:
        server.odd[NAME] = other
        return await refused(content(tmp_path / "device", shop, server.url))


async def test_other_content(tmp_path: Path, shop: Shop) -> None:
    error = await answering(tmp_path, shop, CONTENT[:-1] + b"x")
    assert error.reason == "bad_digest"
    assert (staged(tmp_path) / f"{DIGEST}.part").stat().st_size == 0


async def test_short_content(tmp_path: Path, shop: Shop) -> None:
    error = await answering(tmp_path, shop, CONTENT[:-1])
    assert error.reason == "too_short"
    assert "ends at byte 299,999 of 300,000" in str(error)


async def test_long_content(tmp_path: Path, shop: Shop) -> None:
    assert (await answering(tmp_path, shop, CONTENT + b"x")).reason == "too_long"


async def test_endless_content(tmp_path: Path, shop: Shop) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await forever(bytes(100_000), response, request)
        return response

    async with serving(shop.served) as server:
        server.odd[NAME] = endless
        error = await refused(content(tmp_path / "device", shop, server.url))
    assert error.reason == "too_long"
    assert sum(one.stat().st_size for one in staged(tmp_path).iterdir()) <= len(CONTENT)


async def test_standing_still(tmp_path: Path, shop: Shop) -> None:
    async def still(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(CONTENT)
        await response.prepare(request)
        await response.write(CONTENT[:1000])
        await release(request)
        return response

    async with serving(shop.served) as server:
        server.odd[NAME] = still
        device = content(tmp_path / "device", shop, server.url, stall_s=0.3, tries_max=2)
        error = await refused(device)
    assert error.reason == "unreachable"


async def release(request: web.Request) -> None:
    """Until the device has gone."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.02)


async def test_next_source(tmp_path: Path, shop: Shop) -> None:
    """One is not there, one is old, one is right; and the content comes from one that has it."""
    old = shop.copy(tmp_path / "old")
    shop.publish()
    broken = shop.copy(tmp_path / "broken")
    next((broken / "targets").rglob("*.tar")).unlink()
    device = content(tmp_path / "device", shop, f"file://{shop.served}")
    await device.check()
    sources = [f"file://{one}" for one in (tmp_path / "none", old, broken, shop.served)]
    fetched = await content(tmp_path / "device", shop, *sources).fetch(TARGET, silent)
    assert Path(fetched.path).read_bytes() == CONTENT


async def test_all_sources_fail(tmp_path: Path, shop: Shop) -> None:
    """The refusal that says most is told."""
    old = shop.copy(tmp_path / "old")
    shop.publish()
    await content(tmp_path / "device", shop, f"file://{shop.served}").check()
    sources = [f"file://{one}" for one in (tmp_path / "none", old)]
    assert (await refused(content(tmp_path / "device", shop, *sources))).reason == "rollback"


async def test_named_source(tmp_path: Path, shop: Shop) -> None:
    """A technician's stick, in place of what is configured."""
    device = content(tmp_path / "device", shop, "http://127.0.0.1:1/")
    fetched = await device.fetch(TARGET, silent, str(shop.served))
    assert Path(fetched.path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target", ["models/none.tar", "../../etc/passwd", "/etc/passwd", "a//b", "", "models/.x"]
)
async def test_no_target(tmp_path: Path, shop: Shop, target: str) -> None:
    device = content(tmp_path / "device", shop, f"file://{shop.served}")
    assert (await refused(device, target)).reason == "no_target"


async def test_for_others(tmp_path: Path, shop: Shop) -> None:
    shop.add(b"for presses", "files/presses", kind="file", tags=["press", "device-8"])
    shop.publish()
    source = f"file://{shop.served}"
    device = content(tmp_path / "device", shop, source)
    assert (await refused(device, "files/presses")).reason == "other_device"
    assert (await device.check()).others == 1
    press = content(tmp_path / "device", shop, source, tags=["press"])
    assert (await press.fetch("files/presses", silent)).kind == "file"


async def test_unsigned_form(tmp_path: Path, shop: Shop) -> None:
    """Another tool published it: what is not said of it cannot be guessed."""

    def change(signed: dict[str, Any]) -> None:
        del signed["targets"][TARGET]["custom"]

    shop.forge("2.targets.json", change, "targets")
    shop.publish()
    device = content(tmp_path / "device", shop, f"file://{shop.served}")
    assert (await refused(device)).reason == "unreadable"
    assert (await device.check()).others == 1
