"""A certificate is replaced over the link that it serves, and comes back if that stays away."""

import asyncio
import json
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.clock import Clock
from agent.errors import LinkError, NotNow, RequestError
from agent.health.conditions import Conditions
from agent.identity import checks
from agent.identity.pair import Pair
from agent.identity.rotation import Line, Rotation
from agent.identity.watch import Watch
from agent.known_time import KnownTime
from fleet.identity import authority
from fleet.identity.authority import Authority
from tests.fleet.identity.office import Office, ShippedBroker
from tests.identity.desk import DEVICE, Desk, Noted
from tests.outside import ROOT, running
from tests.sync.bent import Told
from tests.sync.rig import Rig, emptied, eventually, linked

DAY_S = 86_400.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    found = Desk(tmp_path)
    found.enrol()
    return found


async def ordered(desk: Desk, name: str, args: Any) -> Any:
    return await desk.verbs[name].run(args, Noted(desk.folder / "step"))


async def asked(desk: Desk) -> bytes:
    answer = await ordered(desk, "certificate.request", desk.verbs["certificate.request"].args())
    assert answer["device"] == DEVICE
    return str(answer["csr"]).encode()


async def test_a_new_key_is_made_on_the_device_and_serves_once_the_link_is_up(desk: Desk) -> None:
    former = desk.path.read_bytes()
    csr = await asked(desk)
    assert await asked(desk) == csr or authority.request(csr).public_key() == (
        authority.request(await asked(desk)).public_key()
    ), "an answer that was lost changes nothing"
    args = desk.renewed()
    assert desk.path.read_bytes() == former
    answer = await ordered(desk, "certificate.install", args)
    assert answer["sha256"] == desk.pair.shown().sha256
    assert desk.begun_anew == 1
    assert [one.name for one in desk.folder.glob("device.pem*")] == ["device.pem"]
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o600
    ssl.create_default_context().load_cert_chain(desk.path)
    assert b"PRIVATE" not in csr
    assert desk.path.read_bytes().split(b"-----")[2] != former.split(b"-----")[2], "another key"


async def test_the_former_one_comes_back_if_the_link_stays_away(desk: Desk) -> None:
    former, args = desk.path.read_bytes(), desk.renewed()
    desk.is_up = False
    with pytest.raises(LinkError, match=r"did not come up .* it is away; the former one"):
        await ordered(desk, "certificate.install", args)
    assert desk.path.read_bytes() == former
    assert desk.begun_anew == 2
    desk.is_up = True
    (desk.folder / "step").unlink()
    await ordered(desk, "certificate.install", args)  # its key was kept
    assert desk.path.read_bytes() != former


@pytest.mark.parametrize("link", ["up", "down"])
def test_a_kill_in_any_state_leaves_a_pair_that_works(link: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.identity.killed", str(tmp_path), link]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 20, "all that it does was broken off once"
    for one in found:
        assert one["whole"], one
        assert one["pair"] == ("new" if link == "up" else "former"), one
        assert one["result"].startswith("succeeded" if link == "up" else "LinkError"), one
        assert one["left"] == ([] if link == "up" else ["device.pem.request"]), one
    assert found[-1]["killed_at"] == 0


async def test_what_does_not_fit_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    former = desk.path.read_bytes()
    with pytest.raises(NotNow, match="no certificate was asked for"):
        await desk.rotation.check(former)
    request = authority.request(desk.request())
    mine = desk.office.issue(DEVICE, "device", request, again=True)
    others = desk.office.issue("press-8", "device", authority.new_key())
    another_key = desk.office.issue(DEVICE, "device", authority.new_key(), again=True)
    other = Authority.made(tmp_path / "other", "Holdfast")
    impostor = other.issue(DEVICE, "device", request)
    servers = Authority.made(tmp_path / "third", "x").issue(DEVICE, "broker", request, hosts=["h"])
    empty = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
    for pem, why in (
        (b"", "no certificate in PEM"),
        (empty, "no certificate in PEM"),
        (others, "is for 'press-8'"),
        (another_key, "for another key"),
        (servers, "not for clients"),
        (impostor, "no known authority answers for it"),
        (impostor + other.pem, "no known authority answers for it"),
        (impostor + desk.office.pem, "no known authority answers for it"),
    ):
        with pytest.raises(RequestError, match=why):
            await ordered(desk, "certificate.install", install(desk, pem))
        assert (desk.path.read_bytes(), desk.begun_anew) == (former, 0)
    with pytest.raises(RequestError, match="32768 at most"):
        await desk.rotation.check(mine * 100)
    await ordered(desk, "certificate.install", install(desk, mine))


KEY = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey
CURVE = bytes.fromhex("06082a8648ce3d030107")  # P-256
CLIENT = bytes.fromhex("06082b06010505070302")  # id-kp-clientAuth


@pytest.mark.parametrize(
    ("known", "unknown", "why"),
    [
        (KEY, KEY[:-1] + b"\x63", "a kind of key that nobody knows here"),
        (CURVE, CURVE[:-1] + b"\x63", "a kind of key that nobody knows here"),
        (CLIENT, CLIENT[:-1] + b"\x63", "not for clients"),
    ],
)
async def test_one_that_is_of_an_unknown_kind_is_refused(
    desk: Desk, known: bytes, unknown: bytes, why: str
) -> None:
    der = ssl.PEM_cert_to_DER_cert(desk.renewed().certificate)
    assert der.count(known) == 1
    pem = ssl.DER_cert_to_PEM_cert(der.replace(known, unknown))
    with pytest.raises(RequestError, match=why) as refused:
        await ordered(desk, "certificate.install", install(desk, pem.encode()))
    assert refused.value.hint
    assert desk.begun_anew == 0


async def test_an_authority_of_an_unknown_kind_hinders_no_other(desk: Desk) -> None:
    """Beside the right one, in link.ca_file."""
    renewed = desk.renewed()
    pem = desk.office.pem
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    odd = ssl.DER_cert_to_PEM_cert(der.replace(KEY, KEY[:-1] + b"\x63"))
    Path(desk.settings.ca_file or "").write_bytes(odd.encode() + pem)
    await ordered(desk, "certificate.install", renewed)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_any_byte_that_is_other_is_refused_or_harmless(desk: Desk) -> None:
    der = ssl.PEM_cert_to_DER_cert(desk.renewed().certificate)
    office = checks.authorities(desk.settings.ca_file)
    taken = 0
    for at in range(len(der)):
        for mask in (0x01, 0x80):
            bent = bytearray(der)
            bent[at] ^= mask
            pem = ssl.DER_cert_to_PEM_cert(bytes(bent)).encode()
            try:
                checks.checked(pem, desk.pair, DEVICE, office, desk.known)
                taken += 1
            except RequestError as error:
                assert error.hint, at
    assert taken <= 1, "but for the count of unused bits behind the signature, it is over all"


def install(desk: Desk, pem: bytes) -> Any:
    return desk.verbs["certificate.install"].args(certificate=pem.decode())


@pytest.mark.parametrize("sure", [True, False])
async def test_one_that_has_expired_is_refused_as_far_as_that_is_known(
    sure: bool, tmp_path: Path
) -> None:
    clock = Told(sure=True, shift_s=800 * DAY_S)
    desk = Desk(tmp_path, known=clock)
    desk.enrol()
    desk.known.note()
    clock.sure = sure
    clock.shift_s = 800 * DAY_S if sure else -20 * 365 * DAY_S
    args = desk.renewed()
    with pytest.raises(RequestError, match="has expired on"):
        await ordered(desk, "certificate.install", args)
    (tmp_path / "known-time.json").unlink()
    fresh = Desk(tmp_path, known=Told(sure=False, shift_s=-20 * 365 * DAY_S))
    await ordered(fresh, "certificate.install", args)  # in 1970, nobody knows


async def test_the_verbs_say_what_they_need(tmp_path: Path) -> None:
    for wrong, said in (
        ({"cert_file": None}, "link.cert_file is not set"),
        ({"key_file": "device.key"}, "cannot be replaced in one instant"),
    ):
        desk = Desk(tmp_path, **wrong)
        with pytest.raises(NotNow, match=said):
            await desk.rotation.request()
        await desk.rotation.run()


def test_the_one_that_can_shut_a_device_out_is_grave(desk: Desk) -> None:
    found = desk.verbs["certificate.install"]
    assert (found.grave, found.lane, found.scope) == (True, "identity", "admin")
    assert found.resume
    assert found.timeout_s > 3600


@pytest.mark.parametrize(
    ("days", "sure", "said"),
    [
        (0, True, None),
        (690, True, None),
        (710, True, "ends on"),
        (740, True, "expired on"),
        (-5, True, "is valid only from"),
        (-5, False, None),
        (710, False, "so much is known"),
        (740, False, "expired on"),
    ],
)
async def test_the_end_is_told_thirty_days_before_it_as_far_as_that_is_known(
    days: int, sure: bool, said: str | None, tmp_path: Path
) -> None:
    clock = Told(sure=True, shift_s=days * DAY_S)
    desk = Desk(tmp_path, known=clock)
    desk.enrol()
    desk.known.note()
    clock.sure = sure
    conditions = Conditions(clock)
    watch = Watch(desk.pair, desk.known, conditions)
    await watch.look()
    found = conditions.all()
    assert bool(found) == bool(said)
    for one in found:
        assert one.name == "link_certificate"
        assert said is not None
        assert said in one.cause
        assert "holdfast provision request" in one.remedy
    desk.path.unlink()
    await watch.look()
    assert not conditions.all(), "the link says that"


async def test_over_a_live_link(tmp_path: Path) -> None:
    """A real broker, which knows the former and the new one, and then no more the former."""
    office = Office(tmp_path)
    broker = ShippedBroker(tmp_path, office)
    pair = Pair(tmp_path / "identity" / "device.pem")
    pair.path.parent.mkdir()

    def issued(*, again: bool) -> bytes:
        return office.authority.issue(
            "dev", "device", authority.request(pair.request("dev").encode()), again=again
        )

    pair.switch(issued(again=False), on_trial=False)
    pair.keep()
    first = pair.shown().serial
    trust = {"ca_file": str(office.authority.certificate_file), "cert_file": str(pair.path)}
    with running(broker):
        async with linked(Rig(tmp_path, broker.url, ack_from="broker", **trust)) as rig:
            await eventually(lambda: rig.link.connected_since, "the link is up")
            line = Line(
                lambda: rig.link.connected_since is not None,
                lambda: rig.link.restart(""),
                lambda: rig.link.state()["down_cause"] or "",
            )
            rotation = Rotation(rig.settings, "dev", line, rig.known, Clock())
            renewed = issued(again=True)
            await rotation.switch(renewed)
            found = await rotation.outcome(renewed, 30.0)
            assert found.serial == pair.shown().serial != first
            office.authority.revoke(first)
            broker.take_list()
            await rig.link.restart("")
            await eventually(lambda: rig.link.connected_since, "with the new one")
            bad = issued(again=True)
            refused = authority.x509.load_pem_x509_certificate(bad).serial_number
            office.authority.revoke(f"{refused:x}")
            broker.take_list()
            await rotation.switch(bad)
            with pytest.raises(LinkError, match="the former one is in use again"):
                await rotation.outcome(bad, 0.5)
            assert pair.shown() == found
            await rig.fill(3)
            await emptied(rig)


async def test_a_disk_that_refuses_is_told_and_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former pair cannot be put back at first; whoever waits is told, and the trial goes on."""
    former, args = desk.path.read_bytes(), desk.renewed()
    put, refused = desk.rotation._pair()._put, list[str]()

    def refusing(self: Pair, path: Path, content: bytes) -> None:
        if path == desk.path and content == former and len(refused) < 3:
            refused.append(path.name)
            raise OSError(28, "No space left on device", str(path))
        put(path, content)

    monkeypatch.setattr(Pair, "_put", refusing)
    monkeypatch.setattr("agent.identity.rotation.RETRY_S", 0.01)
    desk.is_up = False
    with pytest.raises(NotNow, match="No space left"):
        await ordered(desk, "certificate.install", args)
    with pytest.raises(NotNow, match="is on trial"):
        await desk.rotation.switch(desk.renewed().certificate.encode())
    running_on = asyncio.create_task(desk.rotation.run())
    await eventually(lambda: desk.path.read_bytes() == former, "it is put back")
    running_on.cancel()
    assert len(refused) == 3


async def test_a_time_that_cannot_be_kept_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    known = KnownTime(tmp_path / "file" / "known-time.json", Told(sure=True))
    keeping = asyncio.create_task(known.run())
    await eventually(lambda: "the time cannot be kept" in caplog.text, "it is said")
    assert not keeping.done()
    keeping.cancel()
