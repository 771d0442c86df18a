"""By which time expiry is judged: never by a clock that nobody vouches for."""

import ssl
from pathlib import Path

import pytest
from aiohttp import web

from agent.known_time import KnownTime
from agent.updates.fetched import NotFetched
from tests.sync.authority import Authority
from tests.updates.bed import (
    CONTENT,
    DAY_S,
    NOW_S,
    TARGET,
    TIME,
    FakeClock,
    Shop,
    content,
    serving,
    silent,
)


def published(folder: Path) -> Shop:
    shop = Shop(folder / "shop")
    shop.add()
    shop.publish()
    return shop


async def test_1970(tmp_path: Path) -> None:
    """No network has ever told the time: all that was signed is taken, and the result says so."""
    shop = published(tmp_path)
    clock = FakeClock(0.0, true=False)
    device = content(tmp_path / "device", shop, f"file://{shop.served}", clock=clock)
    fetched = await device.fetch(TARGET, silent)
    assert Path(fetched.path).read_bytes() == CONTENT
    assert not fetched.expiry_judged


async def test_wrong_clock_expires_nothing(tmp_path: Path) -> None:
    """Ten years ahead, and nobody vouches for it."""
    shop = published(tmp_path)
    clock = FakeClock(NOW_S + 3650 * DAY_S, true=False)
    device = content(tmp_path / "device", shop, f"file://{shop.served}", clock=clock)
    assert not (await device.check()).expiry_judged


async def test_last_good_time_expires(tmp_path: Path) -> None:
    """What had expired when the time was last known has expired, after a boot in 1970 too."""
    shop = published(tmp_path)
    device = tmp_path / "device"
    device.mkdir()
    KnownTime(device / TIME, FakeClock(NOW_S + 31 * DAY_S)).note()
    clock = FakeClock(0.0, true=False, boot="boot-2")
    with pytest.raises(NotFetched, match="expired"):
        await content(device, shop, f"file://{shop.served}", clock=clock).check()


@pytest.mark.parametrize("true", [True, False])
async def test_certificate_out_of_its_time(tmp_path: Path, true: bool) -> None:
    """While the time is not known, a server's certificate counts whatever its dates say; the
    content is signed. One of another authority never counts."""
    shop = published(tmp_path)
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", first_day=-9, last_day=-2))
    clock = FakeClock(true=true)
    async with serving(shop.served, context) as server:

        async def check(ca: Path) -> str:
            device = content(
                *(tmp_path / "device", shop, server.url),
                clock=clock,
                tries_max=1,
                link={"broker_url": "mqtts://127.0.0.1", "ca_file": str(ca)},
            )
            try:
                return (await device.check()).source
            except NotFetched as error:
                assert error.reason == "unreachable"
                return str(error)

        said = await check(authority.file)
        assert ("expired" in said) if true else said == server.url
        assert "certificate" in await check(stranger.file)


async def test_a_mirror_that_sends_on_to_https(tmp_path: Path) -> None:
    """It is judged there by the same authorities, and by the same time."""
    shop = published(tmp_path)
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", first_day=-9, last_day=-2))
    async with serving(shop.served, context) as server, serving(tmp_path / "empty") as mirror:

        async def elsewhere(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": server.url + request.path[1:]})

        mirror.odd[""] = elsewhere
        device = content(
            *(tmp_path / "device", shop, mirror.url),
            clock=FakeClock(true=False),
            link={"broker_url": "mqtts://127.0.0.1", "ca_file": str(authority.file)},
        )
        assert Path((await device.fetch(TARGET, silent)).path).read_bytes() == CONTENT
        assert server.asked


async def test_http_needs_no_certificates(tmp_path: Path) -> None:
    shop = published(tmp_path)
    link = {"broker_url": "mqtts://127.0.0.1", "ca_file": str(tmp_path / "gone.pem")}
    async with serving(shop.served) as server:
        device = content(tmp_path / "device", shop, server.url, link=link)
        assert Path((await device.fetch(TARGET, silent)).path).read_bytes() == CONTENT
