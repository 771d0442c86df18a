"""TLS against a real Mosquitto, and every way to get it wrong."""

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outside import Device, Mosquitto, free_port, program, running
from tests.sync.authority import Authority
from tests.sync.bent import Told
from tests.sync.rig import BLOB, Rig, emptied, eventually, linked, served, silent

# paho leaves the socket of a failed handshake to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def secured(folder: Path, authority: Authority, more: str = "", **issued: object) -> Mosquitto:
    """A broker that speaks TLS, with a certificate as `issued` says."""
    certificate, key = authority.issue("broker", **issued)  # type: ignore[arg-type]
    broker = Mosquitto(folder, extra=f"certfile {certificate}\nkeyfile {key}\n{more}")
    broker.url = broker.url.replace("mqtt:", "mqtts:")
    return broker


@pytest.fixture
def strict(tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    """A broker that asks for the device's certificate."""
    more = f"cafile {authority.file}\nrequire_certificate true\n"
    broker = secured(tmp_path, authority, more)
    with running(broker):
        yield broker


async def test_tls_delivers_and_a_wrong_authority_does_not(
    tmp_path: Path, authority: Authority
) -> None:
    broker = secured(tmp_path, authority)
    with running(broker):
        trust = {"ca_file": str(authority.file)}
        async with linked(Rig(tmp_path, broker.url, ack_from="broker", **trust)) as rig:
            await rig.fill(10, BLOB)
            await emptied(rig)
        for wrong, said in (
            (None, "the system's authorities (no link.ca_file is set)"),
            (Authority(tmp_path, "other").file, "is of no authority in"),
            ("/absent.pem", "link.ca_file: /absent.pem: No such file"),
        ):
            async with linked(Rig(tmp_path, broker.url, ca_file=wrong and str(wrong))) as rig:
                await eventually(lambda rig=rig, said=said: rig.says(said), "the cause")


@pytest.mark.parametrize(
    ("issued", "said", "remedy"),
    [
        ({"first_day": -9, "last_day": -2}, "has expired by this machine's clock", "renew it"),
        ({"first_day": 2, "last_day": 9}, "is not valid yet by this machine's", "the clock"),
        ({"address": "127.0.0.9"}, "is not for 127.0.0.1", "link.broker_url"),
    ],
    ids=["expired", "not yet valid", "host"],
)
async def test_a_brokers_certificate_that_is_not_trusted_is_explained(
    issued: dict[str, object], said: str, remedy: str, tmp_path: Path, authority: Authority
) -> None:
    broker = secured(tmp_path, authority, **issued)
    with running(broker):
        trust = {"ca_file": str(authority.file)}
        async with linked(Rig(tmp_path, broker.url, Told(sure=True), **trust)) as rig:
            await eventually(lambda: rig.says(said), "the cause")
            (condition,) = rig.conditions.all()
            assert remedy in condition.remedy


def shown(authority: Authority, certificate: object, key: object) -> dict[str, str]:
    files = {"ca_file": authority.file, "cert_file": certificate, "key_file": key}
    return {name: str(path) for name, path in files.items() if path}


async def test_a_client_certificate_is_shown(
    tmp_path: Path, authority: Authority, strict: Mosquitto
) -> None:
    files = shown(authority, *authority.issue("device"))
    async with linked(Rig(tmp_path, strict.url, ack_from="broker", **files)) as rig:
        await rig.fill(3)
        await emptied(rig)


async def test_a_broker_that_wants_a_certificate_is_explained(
    tmp_path: Path, authority: Authority, strict: Mosquitto
) -> None:
    old = authority.issue("old", first_day=-9, last_day=-2)
    new = authority.issue("new", first_day=2, last_day=9)
    other = Authority(tmp_path, "other").issue("stranger")
    for pair, said in (
        ((None, None), "link.cert_file is not set"),
        (old, f"link.cert_file: {old[0]} has expired"),
        (new, f"link.cert_file: {new[0]} is valid from"),
        (other, f"link.cert_file: {other[0]} may not be what it accepts"),
    ):
        files = shown(authority, *pair)
        async with linked(Rig(tmp_path, strict.url, Told(sure=True), **files)) as rig:
            await eventually(lambda rig=rig, said=said: rig.says(said), said)


async def test_a_file_that_cannot_be_used_is_named_with_its_key(
    tmp_path: Path, authority: Authority
) -> None:
    """Before anything is sent, so no broker is needed."""
    certificate, key = authority.issue("device")
    _, sealed = authority.issue("sealed", passphrase=b"secret")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    url = f"mqtts://127.0.0.1:{free_port()}"
    for files, said in (
        ((certificate, "/absent"), "link.key_file: /absent: No such file"),
        (("/absent", key), "link.cert_file: /absent: No such file"),
        ((certificate, None), f"link.cert_file: {certificate}: no private key"),
        ((None, key), "link.key_file is set, and link.cert_file is not"),
        ((certificate, junk), f"link.key_file: {junk}: no private key"),
        ((junk, key), f"link.cert_file: {junk}: no certificate"),
        ((certificate, sealed), f"link.key_file: {sealed}: the key is encrypted"),
        ((certificate, authority.issue("b")[1]), "does not belong to the certificate"),
    ):
        async with linked(Rig(tmp_path, url, **shown(authority, *files))) as rig:
            await eventually(lambda rig=rig, said=said: rig.says(said), said)
    async with linked(Rig(tmp_path, url, ca_file=str(junk))) as rig:
        await eventually(lambda: rig.says(f"link.ca_file: {junk}: no certificates"), "junk")


async def test_the_wanted_protocol_is_named_in_the_handshake(
    tmp_path: Path, authority: Authority
) -> None:
    chosen: list[str | None] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("broker"))
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    async with served(serve, ssl=context) as port:
        url = f"mqtts://127.0.0.1:{port}"
        settings = {"ca_file": str(authority.file), "alpn": "x-amzn-mqtt-ca"}
        async with linked(Rig(tmp_path, url, **settings)):
            await eventually(lambda: chosen, "a handshake")
        assert chosen[0] == "x-amzn-mqtt-ca"


async def test_a_port_without_tls_is_said(tmp_path: Path, broker: Mosquitto) -> None:
    async with linked(Rig(tmp_path, broker.url.replace("mqtt:", "mqtts:"))) as rig:
        await eventually(lambda: rig.says("127.0.0.1"), "the cause")


async def test_a_token_is_read_anew_for_each_connection(tmp_path: Path) -> None:
    passwords, token = tmp_path / "passwords", tmp_path / "token"
    make = program("mosquitto_passwd", "mosquitto")
    subprocess.run([make, "-c", "-b", str(passwords), "dev", "fresh"], check=True)
    token.write_text("stale\n")
    broker = Mosquitto(tmp_path, extra=f"password_file {passwords}\n")
    config = tmp_path / f"mosquitto-{broker.port}.conf"
    config.write_text(config.read_text().replace("anonymous true", "anonymous false"))
    with running(broker):
        secret = {"username": "dev", "password_file": str(token)}
        async with linked(Rig(tmp_path, broker.url, **secret)) as rig:
            await eventually(lambda: rig.says("Not authorized"), "the old one is refused")
            token.write_text("fresh\n")
            await eventually(lambda: rig.link.connected_since, "the new one serves")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe\x00", "not text in UTF-8"), (None, "No such file")]
)
async def test_a_password_that_cannot_be_read_is_said(
    content: bytes | None, said: str, tmp_path: Path, broker: Mosquitto
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    secret = {"username": "dev", "password_file": str(path)}
    async with linked(Rig(tmp_path, broker.url, **secret)) as rig:
        await eventually(lambda: rig.says(f"link.password_file: {path}: {said}"), "the cause")


async def test_a_server_that_hangs_in_the_handshake_does_not_hold_up_the_agents_end(
    tmp_path: Path,
) -> None:
    async with served(silent) as port:
        url = f"mqtts://127.0.0.1:{port}"
        link = {"broker_url": url, "ack_from": "ingest", "connect_timeout_s": 3600}
        device = Device(tmp_path, {"link": link})
        with running(device):
            assert await asyncio.to_thread(device.stop) == 0
