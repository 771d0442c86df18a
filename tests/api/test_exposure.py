"""Where the doors listen: the loopback alone until there is a certificate and a token."""

import asyncio
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.api.entry import exposure as policy
from agent.api.entry import listening
from agent.api.entry.exposure import exposure, names
from agent.api.routes.inference import Inference
from agent.config import Api, Tls
from agent.errors import ConfigError, NotThere
from tests.api.house import DEADLINE_S, HEALTH, House, Pair
from tests.cli.unprivileged import UnprivilegedDevice, holdfast_unprivileged
from tests.outside import free_port

TLS = Tls(certificate_file="c", key_file="k")
HOST = socket.gethostname().lower().partition(".")[0]


def outside() -> str:
    """An address of this machine that others reach it by; one is made up where there is none."""
    for every in psutil.net_if_addrs().values():
        for one in every:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return one.address
    pytest.skip("this machine has no network")


def listens(port: int) -> set[str]:
    """The addresses on which this process does."""
    open_ones = psutil.Process().net_connections("tcp")
    return {c.laddr.ip for c in open_ones if c.status == "LISTEN" and c.laddr.port == port}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1"])
@pytest.mark.parametrize("there", [False, True])
def test_a_loopback_address_is_listened_on_whatever_there_is(host: str, there: bool) -> None:
    found = exposure(Api(host=host), certificate=there, token=there)
    assert found == ({host}, ())


@pytest.mark.parametrize(
    ("host", "near", "wide"),
    [
        ("0.0.0.0", {"127.0.0.1"}, {"0.0.0.0"}),
        ("::", {"::1"}, {"::"}),
        ("192.168.1.5", {"127.0.0.1"}, {"127.0.0.1", "192.168.1.5"}),
        ("fd00::5", {"::1"}, {"::1", "fd00::5"}),
    ],
)
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("certificate", [False, True])
def test_beyond_it_both_are_needed(
    host: str, near: set[str], wide: set[str], certificate: bool, token: bool, told: bool
) -> None:
    found = exposure(Api(host=host, without_tls=told), certificate=certificate, token=token)
    may = token and (certificate or told)
    assert found.addresses == (wide if may else near)
    assert bool(found.lacking) == (not may)
    said = str(found.lacking)
    assert ("holdfast tokens create" in said) == (not token)
    assert ("api.tls" in said) == (not certificate and not told)


def test_a_certificate_that_cannot_be_used_is_no_reason_to_set_one() -> None:
    (lacks,) = exposure(Api(host="::", tls=TLS), certificate=False, token=True).lacking
    assert "api_certificate" in lacks[1]


def test_the_names_of_a_machine_are_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box.plant.example")
    called = {"box", "box.local", "box.plant.example"}
    assert names({"127.0.0.1"}) == names({"::1"}) == names(set()) == frozenset()
    assert names({"127.0.0.1", "192.168.1.5"}) == called | {"192.168.1.5"}
    monkeypatch.setattr(policy, "_own", lambda family: {"10.0.0.7"} if family == 2 else {"fd00::7"})
    assert names({"0.0.0.0"}) == called | {"10.0.0.7"}
    assert names({"::"}) == called | {"fd00::7"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"host": "999.1.1.1"}, "api.host"),
        ({"host": "1:2"}, "api.host"),
        ({"tls": TLS, "without_tls": True}, "api.without_tls"),
    ],
)
def test_settings_that_cannot_hold_are_refused(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        House(tmp_path, **settings)
    assert caught.value.hint


@contextmanager
def looking(house: House) -> Iterator[None]:
    """The server's own loop."""
    task = asyncio.get_running_loop().create_task(house.server.run())
    try:
        yield
    finally:
        task.cancel()


async def until_on(house: House, addresses: set[str]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while listens(house.server.port) != addresses:
            await asyncio.sleep(0.001)


async def test_it_opens_when_both_exist_and_closes_with_the_last_token(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with House(tmp_path, host="0.0.0.0", tls=pair.settings) as house:
        port = house.server.port
        with looking(house):
            await until_on(house, {"127.0.0.1"})
            said = house.said("api_loopback_only")
            assert said is not None
            assert "no token" in said.cause
            assert "holdfast tokens create" in said.remedy
            pair.write()
            house.server.look_soon()
            async with asyncio.timeout(DEADLINE_S):
                while house.said("api_certificate"):
                    await asyncio.sleep(0.001)
            assert listens(port) == {"127.0.0.1"}, "a certificate alone is not enough"
            for _ in range(3):
                house.tokens.be(True)
                await until_on(house, {"0.0.0.0"})
                async with asyncio.timeout(DEADLINE_S):
                    while house.said("api_loopback_only"):
                        await asyncio.sleep(0.001)
                answer, _ = await asyncio.to_thread(house.shaken)
                assert answer.startswith(b"HTTP/1.1 200 ")
                house.tokens.be(False)
                await until_on(house, {"127.0.0.1"})
            assert house.server.port == port


@pytest.mark.parametrize("said", [HEALTH, HEALTH.replace(b"v1/health", b"v2"), b"no\r\n\r\n"])
async def test_nobody_is_told_what_it_is_made_of(tmp_path: Path, said: bytes) -> None:
    async with House(tmp_path) as house:
        answer = await asyncio.to_thread(house.asked, said)
    assert b"\r\nServer: holdfast\r\n" in answer
    assert b"aiohttp" not in answer


async def test_an_open_connection_goes_on_when_the_port_closes(tmp_path: Path) -> None:
    async with House(tmp_path, host="0.0.0.0", without_tls=True) as house:
        house.tokens.be(True)
        await house.look()
        reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        house.tokens.be(False)
        await house.look()
        assert listens(house.server.port) == {"127.0.0.1"}
        writer.write(HEALTH)
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_out_there_it_answers_to_its_own_names_and_no_other(tmp_path: Path) -> None:
    address = outside()
    async with House(tmp_path, host=address, without_tls=True) as house:
        own = [address, HOST, f"{HOST}.local", f"{HOST.upper()}:80"]

        async def answers(name: str, host: str) -> bool:
            said = HEALTH.replace(b"localhost", name.encode())
            answer = await asyncio.to_thread(house.asked, said, host)
            assert answer[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 401", b"HTTP/1.1 421")
            return not answer.startswith(b"HTTP/1.1 421 ")

        for name in own:
            assert not await answers(name, "127.0.0.1"), "on the loopback alone: none of them"
        house.tokens.be(True)
        await house.look()
        assert listens(house.server.port) == {"127.0.0.1", address}
        for host in ("127.0.0.1", address):
            for name in own:
                assert await answers(name, host), (name, host)
            for name in ("evil.example", f"{HOST}.evil.example", "192.0.2.1", "0.0.0.0"):
                assert not await answers(name, host), (name, host)
        house.tokens.be(False)
        await house.look()
        for name in own:
            assert not await answers(name, "127.0.0.1")


class NoModels:
    """In the place of the scheduler."""

    def start(self, _: Any) -> Any:
        raise NotThere("no such model", "make one")

    infer = start


async def test_a_name_of_before_is_forgotten_on_the_short_way_too(tmp_path: Path) -> None:
    inference = Inference(NoModels())  # type: ignore[arg-type]
    async with House(tmp_path, inference=inference, host="0.0.0.0", without_tls=True) as house:
        line = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: {HOST}.local\r\n"
        said = f"{line}Content-Length: 0\r\n\r\n"
        for there, status in ((True, b"400"), (False, b"421"), (True, b"400")):
            house.tokens.be(there)
            await house.look()
            reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
            writer.write(said.encode())
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.readline()).split()[1] == status
            writer.close()


async def test_an_address_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with House(tmp_path, host="192.0.2.1", without_tls=True) as house:
        house.tokens.be(True)
        for _ in range(2):
            await house.look()
            said = house.said("api_loopback_only")
            assert said is not None
            assert "192.0.2.1" in said.cause
            assert "no such address" in said.remedy
            assert listens(house.server.port) == {"127.0.0.1"}
        open_one = listening.Port._open

        async def there(self: listening.Port, address: str) -> None:
            await open_one(self, "127.0.0.9" if address == "192.0.2.1" else address)

        monkeypatch.setattr(listening.Port, "_open", there)
        await house.look()
        assert house.said("api_loopback_only") is None
        assert listens(house.server.port) == {"127.0.0.1", "127.0.0.9"}


async def test_a_port_that_somebody_has_out_there_leaves_the_loopback(tmp_path: Path) -> None:
    address, port = outside(), free_port()
    with socket.create_server((address, port)):
        async with House(tmp_path, host="0.0.0.0", port=port, without_tls=True) as house:
            house.tokens.be(True)
            await house.look()
            assert house.said("api_loopback_only") is not None
            assert (await asyncio.to_thread(house.asked)).startswith(b"HTTP/1.1 200 ")


async def test_more_connections_than_descriptors_are_refused_at_start(tmp_path: Path) -> None:
    house = House(tmp_path, None, connections_max=65_536)
    with pytest.raises(ConfigError, match=r"api\.connections_max: 65536"):
        await house.server.__aenter__()
    assert not house.socket.exists()
    async with House(tmp_path, None, connections_max=7) as small:
        assert small.places_free == 7


async def test_the_socket_is_given_to_a_group(tmp_path: Path) -> None:
    gid = next(one for one in [*os.getgroups(), os.getgid()])
    group = grp.getgrgid(gid).gr_name
    if os.geteuid() == 0:
        group, gid = next((g.gr_name, g.gr_gid) for g in grp.getgrall() if g.gr_gid != os.getgid())
    async with House(tmp_path, group=group) as house:
        found = house.socket.stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (gid, 0o660)


async def test_a_group_that_is_none_is_refused_at_start(tmp_path: Path) -> None:
    house = House(tmp_path, group="no-such-group")
    with pytest.raises(ConfigError, match=r"api\.group: there is no group 'no-such-group'") as it:
        await house.server.__aenter__()
    assert "groupadd" in it.value.hint
    assert not house.socket.exists()


def test_a_group_that_is_not_the_users_is_refused_at_start(tmp_path: Path) -> None:
    mine = {os.getgid(), *os.getgroups()}
    other = next(one.gr_name for one in grp.getgrall() if one.gr_gid not in mine)
    api = {"port": 0, "socket": str(tmp_path / "holdfast.sock"), "group": other}
    device = UnprivilegedDevice(tmp_path, {"api": api})
    done = holdfast_unprivileged("run", "--config", str(device.config))
    assert done.returncode == ConfigError.exit_code
    assert f"api.group: this user may not give the socket to '{other}'" in done.stderr
    assert not device.socket.exists()
