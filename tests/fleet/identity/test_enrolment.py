"""From two machines that know nothing of each other to a record that is stored, by the commands."""

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from agent import config_file
from agent.cli import provision
from agent.cli.client import Client
from agent.errors import HoldfastError
from fleet import bundle_cli, identity_cli
from tests.fleet.identity.office import Office, ShippedBroker
from tests.fleet.process import IngestProcess
from tests.outside import Device, holdfast, running, until
from tests.updates.bed import TARGET, Shop

NAME = "device-under-test"


def office_says(folder: Path, *arguments: str) -> str:
    """The office's command, in its own folder; what it printed, or what it says is wrong."""
    own = () if arguments[0] == "key" else ("--folder", str(folder / "office"))
    group = bundle_cli.app if arguments[0] == "key" else identity_cli.app
    return said(CliRunner().invoke(group, [*arguments, *own]))


def device_says(device: Device, *arguments: str) -> str:
    command = [*arguments, "--config", str(device.config)]
    return said(CliRunner().invoke(provision.app, command))


def said(result: Result) -> str:
    if isinstance(result.exception, HoldfastError):
        return f"{result.exception}; {result.exception.hint}"
    assert result.exception is None, result.exception
    return result.output


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    found = tmp_path / "stick"
    found.mkdir()
    return found


def enrolled(folder: Path, device: Device, stick: Path, url: str, *more: str) -> str:
    """A device whose office has written its enrolment onto the stick; the office's key."""
    device_says(device, "request", "--out", str(stick / "a.csr"))
    key = ("--key-file", str(folder / "fleet.key"))
    issued = ("--csr", str(stick / "a.csr"), "--out", str(stick), "--broker", url)
    office_says(folder, "issue", NAME, *issued, *key, *more)
    return office_says(folder, "key", *key).strip()


def test_a_device_is_enrolled_by_stick_and_delivers(tmp_path: Path, stick: Path) -> None:
    office_says(tmp_path, "init")
    office = Office(tmp_path)
    broker = ShippedBroker(tmp_path, office)
    office_says(tmp_path, "issue", "ingest", "--role", "ingest", "--out", str(tmp_path))
    device = Device(tmp_path, {})
    with running(device):
        pass  # it has lived, and is down: the next start is a record
    before = config_file.load(device.config)
    shop = Shop(tmp_path / "shop")
    shop.now_s = time.time()
    shop.add()
    shop.publish()
    key = enrolled(tmp_path, device, stick, broker.url, "--tuf-root", str(shop.root_file))
    file = str(stick / f"{NAME}.enrolment")
    assert "nobody has said that this is the office" in device_says(device, "install", file)
    told = device_says(device, "install", file, "--by", key)
    assert f'ca_file: "{device.folder}/var/identity/authority.pem"' in told
    assert config_file.load(device.config) == before, "nothing was written"
    config = ("--config", str(device.config))
    assert holdfast("provision", "install", file, "--by", key, "--write", *config).returncode == 0
    found = config_file.load(device.config)
    assert (found.link.broker_url, found.bundle.fleet_keys) == (broker.url, [key])
    assert found.updates.urls == ["mqtt:"]
    pair = Path(found.link.cert_file or "")
    assert (stat.S_IMODE(pair.stat().st_mode), stat.S_IMODE(pair.parent.stat().st_mode)) == (
        0o600,
        0o700,
    )
    assert json.loads(device_says(device, "show", "--json"))["device"] == NAME
    ingest = IngestProcess(
        *(tmp_path, broker.url.replace("127.0.0.1", "localhost"), f"sqlite:///{tmp_path}/f.db"),
        *("--ca-file", str(office.authority.certificate_file)),
        *("--cert-file", str(tmp_path / "ingest.crt"), "--key-file", str(tmp_path / "ingest.key")),
    )
    with running(broker, ingest, device):
        until(lambda: device.ledger("watchdog")["delivered"], "a record is stored and acknowledged")
        order = {"name": "updates.check", "args": {"source": f"file://{shop.served}"}}
        told = Client(device.socket).post("/api/v1/commands?wait_s=30", order)
        assert told["state"] == "succeeded", told
        assert [one["target"] for one in told["result"]["offers"]] == [TARGET]
        names = {one["name"] for one in device.status()["conditions"]}
        assert not names & {"broker_refused", "link_certificate", "link_down"}, names


def test_what_an_enrolment_cannot_say_is_told_before_anything_is_issued(
    tmp_path: Path, stick: Path
) -> None:
    office_says(tmp_path, "init")
    device_says(Device(tmp_path, {}), "request", "--out", str(stick / "a.csr"))
    shop = Shop(tmp_path / "shop")
    shop.add()
    shop.publish()
    root = json.loads(shop.root_file.read_text())
    root["signed"]["version"] = 2  # signed by nobody
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(root))
    to = ("--broker", "mqtts://broker.example")
    other = ("--key-file", str(tmp_path / "other.key"))
    by = office_says(tmp_path, "key", *other).strip()
    for more, wrong in (
        (("--tuf-root", str(shop.root_file)), "--tuf-root without --broker"),
        (("--command-key", by, "--prefix", "a"), "--prefix, --command-key without --broker"),
        ((*to, "--tuf-root", str(shop.root_file.parent / "timestamp.json")), "timestamp metadata"),
        ((*to, "--tuf-root", str(stick / "a.csr")), "expected the root of a repository of"),
        ((*to, "--tuf-root", str(forged)), "expected the root of a repository of updates"),
        ((*to, "--tuf-root", "/nowhere"), "No such file"),
        ((*to, "--command-key", "hf1pub:x"), "is no public key"),
    ):
        issued = ("--csr", str(stick / "a.csr"), "--out", str(tmp_path / "out"))
        told = office_says(tmp_path, "issue", NAME, *issued, *more)
        assert wrong in told, told
        assert NAME not in office_says(tmp_path, "ls")
    assert not (tmp_path / "out").exists()


def test_an_enrolment_is_taken_for_this_device_and_its_key_alone(
    tmp_path: Path, stick: Path
) -> None:
    office_says(tmp_path, "init")
    device = Device(tmp_path, {"bundle": {"fleet_keys": []}})
    key = enrolled(tmp_path, device, stick, "mqtts://broker.example")
    file = stick / f"{NAME}.enrolment"
    whole = file.read_bytes()
    by = ("--by", key)
    for content, said in (
        (b"", "not a Sealed"),
        (whole.replace(b"broker.example", b"broker.exampla"), "is not signed by"),
        (whole[:-20], "not a Sealed"),
        (b" " * 300_000, "more than 262144 bytes"),
    ):
        file.write_bytes(content)
        assert said in device_says(device, "install", str(file), *by)
    file.write_bytes(whole)
    other = Device(_made(tmp_path / "other"), {"device_id": "press-8"})
    assert f"is for {NAME}, and this device is press-8" in device_says(
        other, "install", str(file), *by
    )
    twin = Device(_made(tmp_path / "twin"), {})
    assert "no certificate was asked for" in device_says(twin, "install", str(file), *by)
    device_says(twin, "request")
    assert "for another key" in device_says(twin, "install", str(file), *by)
    for one in (device, other, twin):
        assert not list(one.folder.glob("var/identity/device.pem"))
    device_says(device, "install", str(file), *by, "--write")
    text = device.config.read_text()
    device_says(device, "install", str(file), "--write")  # again: it is known by now
    assert device.config.read_text() == text
    assert yaml.safe_load(text)["device_id"] == NAME
    first = json.loads(device_says(device, "show", "--json"))["serial"]
    device_says(device, "request", "--out", str(stick / "b.csr"))
    again = ("--csr", str(stick / "b.csr"), "--out", str(stick), "--enrolment")
    office_says(tmp_path, "renew", NAME, *again, "--key-file", str(tmp_path / "fleet.key"))
    assert json.loads(device_says(device, "show", "--json"))["serial"] == first
    device_says(device, "install", str(file), "--write")
    assert json.loads(device_says(device, "show", "--json"))["serial"] != first
    assert device.config.read_text() == text, "what it does not say stays as it is"
    left = sorted(one.name for one in (device.folder / "var" / "identity").iterdir())
    assert left == ["authority.pem", "device.pem", "enrolment"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_office_says_what_it_does_not_do(tmp_path: Path, stick: Path) -> None:
    assert "identity init" in office_says(tmp_path, "ls")
    office_says(tmp_path, "init")
    assert "an authority already" in office_says(tmp_path, "init")
    device = Device(tmp_path, {})
    device_says(device, "request", "--out", str(stick / "a.csr"))
    csr, out = ("--csr", str(stick / "a.csr")), ("--out", str(stick))
    wrong: list[tuple[tuple[str, ...], str]] = [
        (("issue", NAME), "made on the device"),
        (("issue", "press-8", *csr), "not one of press-8"),
        (("issue", "ingest", *csr), "cannot be the name of a device"),
        (("issue", "plant", "--role", "controller"), "name it controller or controller-..."),
        (("issue", "b", "--role", "broker"), "names its hosts"),
        (("issue", "b", "--role", "king"), "one of device, ingest"),
        (("issue", "a/b", "--role", "broker", "--host", "h"), "is no name"),
        (("issue", "ingest\n", *csr), "is no name"),
        (("renew", NAME, *csr), "never had a certificate"),
        (("revoke", NAME), "no certificate of this name"),
    ]
    for arguments, said in wrong:
        assert said in office_says(tmp_path, *arguments, *_out(arguments, out))
    office_says(tmp_path, "issue", NAME, *csr, *out)
    assert "shut each other out" in office_says(tmp_path, "issue", NAME, *csr, *out)
    office_says(tmp_path, "renew", NAME, *csr, *out)
    assert "copy it to the broker" in office_says(tmp_path, "revoke", NAME)
    found: list[dict[str, Any]] = json.loads(office_says(tmp_path, "ls", "--json"))["certificates"]
    assert [(one["name"], bool(one["revoked"])) for one in found] == [(NAME, True)] * 2
    assert stat.S_IMODE((tmp_path / "office" / "authority.key").stat().st_mode) == 0o600
    (tmp_path / "office" / "authority.key").chmod(0o644)
    assert "others may read" in office_says(tmp_path, "ls")


def _out(arguments: tuple[str, ...], out: tuple[str, str]) -> tuple[str, ...]:
    return () if arguments[0] == "revoke" else out
