"""TLS on the TCP port: real clients, certificates that change, handshakes that come to nothing."""

import asyncio
import os
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509

from agent.api.entry.access import Access
from tests.api.house import DEADLINE_S, HEALTH, PATIENT, House, Pair, trusting, whole
from tests.outside import Device, program, running, until

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # as a handshake begins
KEPT = HEALTH.replace(b"Connection: close\r\n", b"")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path)
    made.write()
    return made


async def off(call: Callable[..., Any], *given: Any, **more: Any) -> Any:
    """Beside the loop that serves."""
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.to_thread(call, *given, **more)


async def until_free(house: House, places: int = PATIENT.tcp_places) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while house.places_free != places:
            await asyncio.sleep(0.001)


async def test_a_client_is_served_over_tls_alone(tmp_path: Path, pair: Pair) -> None:
    async with House(tmp_path, tls=pair.settings) as house:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            rules = {"minimum_version": version, "maximum_version": version}
            answer, _ = await off(house.shaken, **rules)
            assert answer.startswith(b"HTTP/1.1 200 ")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            old = ssl.TLSVersion.TLSv1_1
            with pytest.warns(DeprecationWarning):
                await off(house.shaken, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=old)
        with suppress(ConnectionError):
            assert b"HTTP" not in await off(house.asked), "not in the clear"
        await until_free(house)


async def test_who_speaks_tls_is_known_by_the_connection_he_came_by(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    arrival = Access.arrival

    def noting(self: Access, transport: Any) -> Any:
        asked = ("socket", "peername", "sockname", "sslcontext")
        seen.append([transport.get_extra_info(one) for one in asked])
        return arrival(self, transport)

    monkeypatch.setattr(Access, "arrival", noting)
    async with House(tmp_path, tls=pair.settings) as house:
        await off(house.shaken)
        sock, peer, own, context = seen[-1]
        assert sock.family == socket.AF_INET
        assert (peer[0], own) == ("127.0.0.1", ("127.0.0.1", house.server.port))
        assert isinstance(context, ssl.SSLContext)
        order = HEALTH.replace(b"GET /api/v1/health", b"POST /api/v1/sync/pause")
        assert b" 404 " in (await off(house.shaken, order))[0].splitlines()[0]


@pytest.mark.parametrize("limits", ["--tls-max 1.2", "--tlsv1.3"])
async def test_curl_is_served_and_believes_who_serves(
    tmp_path: Path, pair: Pair, limits: str
) -> None:
    curl = program("curl", "curl")
    async with House(tmp_path, tls=pair.settings) as house:
        url = f"https://127.0.0.1:{house.server.port}/api/v1/health"
        command = [curl, "-sS", *limits.split(), "--cacert", str(pair.authority.file), url]
        done = await off(subprocess.run, command, capture_output=True, check=True)
        assert b'"status"' in done.stdout


async def test_openssl_is_served(tmp_path: Path, pair: Pair) -> None:
    openssl = program("openssl", "openssl")
    async with House(tmp_path, tls=pair.settings) as house:
        where = ["-connect", f"127.0.0.1:{house.server.port}", "-alpn", "h2,http/1.1"]
        command = [openssl, "s_client", *where, "-quiet", "-ign_eof"]
        done = await off(subprocess.run, command, input=HEALTH, capture_output=True)
        assert b"HTTP/1.1 200 " in done.stdout


@pytest.mark.parametrize("ending", ["fin", "rst"])
@pytest.mark.parametrize("said", [b"", b"\x16", HELLO, b"\xff" * 3000, HEALTH, b"\x16\x03\x01\0\0"])
async def test_a_handshake_that_comes_to_nothing_keeps_no_place_and_no_descriptor(
    tmp_path: Path, pair: Pair, said: bytes, ending: str
) -> None:
    async with House(tmp_path, tls=pair.settings) as house:
        await off(house.shaken)
        await until_free(house)
        before = psutil.Process().num_fds()
        for _ in range(3):
            guests = [await off(house.tcp) for _ in range(PATIENT.tcp_places)]
            await until_free(house, 0)
            for sock in guests:
                sock.sendall(said)
            for sock in guests:
                if ending == "rst":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
            await until_free(house)
        answer, _ = await off(house.shaken)
        assert answer.startswith(b"HTTP/1.1 200 ")
        await until_free(house)
        async with asyncio.timeout(DEADLINE_S):
            while psutil.Process().num_fds() > before:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("said", [b"", b"\x16", HELLO])
async def test_a_handshake_has_a_bounded_time(tmp_path: Path, pair: Pair, said: bytes) -> None:
    limits = PATIENT._replace(handshake_s=0.2)
    async with House(tmp_path, limits, tls=pair.settings) as house:
        guests = [await off(house.tcp) for _ in range(PATIENT.tcp_places)]
        for sock in guests:
            sock.sendall(said)
        for sock in guests:
            with suppress(ConnectionError):
                assert await off(whole, sock) == b""
            sock.close()
        await until_free(house)


async def test_who_comes_when_all_places_are_taken_is_turned_away_before_a_handshake(
    tmp_path: Path, pair: Pair
) -> None:
    async with House(tmp_path, tls=pair.settings) as house:
        guests = [await off(house.tcp) for _ in range(PATIENT.tcp_places)]
        await until_free(house, 0)
        for _ in range(50):
            with await off(house.tcp) as sock, suppress(ConnectionError):
                assert await off(sock.recv, 1) == b""
        assert house.places_free == 0
        with trusting().wrap_socket(guests.pop(), do_handshake_on_connect=False) as sock:
            await off(sock.do_handshake)  # who has a place keeps it
            await off(sock.sendall, HEALTH)
            assert (await off(whole, sock)).startswith(b"HTTP/1.1 200 ")
        for guest in guests:
            guest.close()
        await until_free(house)


async def test_half_a_request_over_tls_has_a_bounded_time(tmp_path: Path, pair: Pair) -> None:
    limits = PATIENT._replace(first_request_s=0.2)
    async with House(tmp_path, limits, tls=pair.settings) as house:
        for said in (b"G", HEALTH[:-3]):
            with suppress(ConnectionError, ssl.SSLError):
                assert (await off(house.shaken, said))[0] == b""
        await until_free(house)


async def test_the_server_ends_with_handshakes_under_way(tmp_path: Path, pair: Pair) -> None:
    async with House(tmp_path, tls=pair.settings) as house:
        guests = [await off(house.tcp) for _ in range(PATIENT.tcp_places)]
        await until_free(house, 0)
    for sock in guests:
        with sock, suppress(ConnectionError):
            assert await off(sock.recv, 1) == b""


async def test_a_new_pair_is_taken_and_open_connections_go_on(tmp_path: Path, pair: Pair) -> None:
    async with House(tmp_path, tls=pair.settings) as house:
        _, first = await off(house.shaken)
        with trusting().wrap_socket(house.tcp(), do_handshake_on_connect=False) as kept:
            await off(kept.do_handshake)
            second = pair.write()
            assert (await off(house.shaken))[1] == first, "nobody has looked"
            await house.look()
            assert (await off(house.shaken))[1] == second != first
            for said in (KEPT, HEALTH):
                await off(kept.sendall, said)
                assert (await off(kept.recv, 65_536)).startswith(b"HTTP/1.1 200 ")
        assert house.said("api_certificate") is None


def other_key(pair: Pair) -> None:
    old = pair.certificate.read_bytes()
    pair.write()
    pair.certificate.write_bytes(old)


SPOILED: dict[str, tuple[Callable[[Pair], Any], str]] = {
    "no certificate": (lambda pair: pair.certificate.unlink(), "api.crt"),
    "no key": (lambda pair: pair.key.unlink(), "api.key"),
    "no pem": (lambda pair: pair.certificate.write_bytes(b"nothing"), "api.crt"),
    "empty": (lambda pair: pair.key.write_bytes(b""), "api.key"),
    "cut": (lambda pair: pair.certificate.write_bytes(pair.certificate.read_bytes()[:200]), ".crt"),
    "another's key": (other_key, "key values mismatch"),
    "locked key": (lambda pair: pair.write(passphrase=b"secret"), "password"),
    "a folder": (lambda pair: (pair.key.unlink(), pair.key.mkdir()), "api.key"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_a_pair_that_cannot_be_used_leaves_the_former_one_and_is_said(
    tmp_path: Path, pair: Pair, spoiled: str
) -> None:
    spoil, named = SPOILED[spoiled]
    async with House(tmp_path, tls=pair.settings) as house:
        _, first = await off(house.shaken)
        spoil(pair)
        for _ in range(2):
            await house.look()
            said = house.said("api_certificate")
            assert said is not None
            assert (said.severity, named in said.cause) == ("warning", True), said.cause
            assert "former one serves on" in said.cause
            assert said.remedy
            assert (await off(house.shaken))[1] == first
        if pair.key.is_dir():
            pair.key.rmdir()
        second = pair.write()
        await house.look()
        assert house.said("api_certificate") is None
        assert (await off(house.shaken))[1] == second


async def test_without_any_pair_the_agent_starts_and_says_so(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with House(tmp_path, tls=pair.settings) as house:
        said = house.said("api_certificate")
        assert said is not None
        assert "without TLS" in said.cause
        assert (await off(house.asked)).startswith(b"HTTP/1.1 200 ")
        pair.write()
        await house.look()
        assert house.said("api_certificate") is None
        assert (await off(house.shaken))[0].startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("days", "word"), [(-30, "from"), (0, ""), (334, ""), (336, "expires"), (400, "expired")]
)
async def test_an_end_that_nears_is_said_when_the_clock_is_trusted(
    tmp_path: Path, pair: Pair, days: int, word: str
) -> None:
    async with House(tmp_path, tls=pair.settings) as house:
        house.clock.now += timedelta(days=days)
        await house.look()
        said = house.said("api_certificate")
        assert (said is not None) == bool(word)
        assert said is None or (word in said.cause and said.severity == "warning")
        assert (await off(house.shaken))[0].startswith(b"HTTP/1.1 200 "), "it serves all the same"
        house.clock.sure = False
        await house.look()
        assert house.said("api_certificate") is None


async def test_an_agent_begins_with_an_expired_certificate(tmp_path: Path, pair: Pair) -> None:
    pair.write(first_day=-9, last_day=-8)
    async with House(tmp_path, tls=pair.settings) as house:
        said = house.said("api_certificate")
        assert said is not None
        assert "expired" in said.cause
        assert (await off(house.shaken))[0].startswith(b"HTTP/1.1 200 ")


def test_a_real_agent_takes_a_new_pair_while_it_serves(tmp_path: Path, pair: Pair) -> None:
    settings = {"certificate_file": str(pair.certificate), "key_file": str(pair.key)}
    api = {"port": 0, "socket": str(tmp_path / "holdfast.sock"), "tls": settings}
    device = Device(tmp_path, {"api": api})
    with running(device):
        log = until(lambda: "https://" in (said := device.log.read_text()) and said, "its port")
        address = ("127.0.0.1", int(log.partition("https://127.0.0.1:")[2].partition("/")[0]))
        assert serial(address)
        new = pair.write()
        os.kill(device.pid, signal.SIGHUP)
        until(lambda: serial(address) == new, "the new one serves")
        assert device.stop() == 0
        assert "Traceback" not in device.log.read_text()


def serial(address: tuple[str, int]) -> int:
    """Of the certificate that a new connection is shown."""
    with trusting().wrap_socket(socket.create_connection(address, DEADLINE_S)) as sock:
        der = sock.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number
