"""`holdfast bundle`, with a real agent and sticks that are full, pulled, or of somebody else.

HOLDFAST_LONG=1 pulls the stick at more points, HOLDFAST_SEED says at which.
"""

import asyncio
import errno
import json
import os
import pty
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest

from agent import config
from agent.clock import Clock
from agent.protocol import ack, bundle
from agent.records import RecordType
from agent.store.intake import New
from agent.store.store import Store
from tests.outside import DEADLINE_S, HOLDFAST, Device, program, running, until
from tests.store.faults.child import LONG
from tests.store.faults.disk import Disk, needs_fuse, small
from tests.sync.bundles import FLEET, STRANGER, Cargo, ack_bundle

STREAM, RECORDS, BLOB_BYTES = "a", 60, 100_000
PARTS = 6  # of 1 MiB, at least
WRITES = 45  # of an export, about
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
PULLS = 40 if LONG else 3


def stock(device: Device, stream: str = STREAM) -> str:
    """Put records into the store of an agent that does not run; the store's epoch."""

    async def work() -> str:
        settings = config.Store(path=str(device.store))
        device.store.parent.mkdir(exist_ok=True)
        async with Store(settings, Clock()) as store:
            for _ in range(RECORDS):
                new = New(RecordType.RAW, b'{"n": 1}', os.urandom(BLOB_BYTES))
                await store.intake.append(stream, [new])
            return store.epoch

    return asyncio.run(work())


def made(folder: Path, **settings: Any) -> Device:
    key_file = str(folder / "var" / "device.key")
    part = {"key_file": key_file, "fleet_keys": [FLEET.public]}
    return Device(folder, {"device_id": "d", "bundle": part, **settings})


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An agent with a backlog of 6 MB and no broker."""
    device = made(tmp_path_factory.mktemp("agent"))
    stock(device)
    with running(device):
        yield device


def call(device: Device, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HOLDFAST), "bundle", *arguments, "--config", str(how.get("at", device.config))],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def document(device: Device, *arguments: str, code: int = 0, **how: Any) -> dict[str, Any]:
    done = call(device, *arguments, "--json", **how)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cargo(folder: Path, export: str = "*") -> Cargo:
    """The bundles of one export in a folder; fails if one of the folder is not whole."""
    for path in folder.glob("*.hfb"):
        with path.open("rb") as file:
            bundle.verify(file)
    paths = sorted(folder.glob(f"holdfast-d-{export}-*.hfb"))
    return Cargo(*(path.read_bytes() for path in paths))


def seqs(folder: Path, export: str = "*") -> list[int]:
    return sorted(seq for _, seq in cargo(folder, export).records)


ALL = list(range(1, RECORDS + 1))


def test_an_export_has_all_that_waits_and_says_so(agent: Device, tmp_path: Path) -> None:
    before = agent.ledger(STREAM)
    (tmp_path / ".holdfast-d-former-0001.hfb.part").write_bytes(b"pulled")
    done = call(agent, "export", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert done.stdout.splitlines()[0].startswith(str(path))
    assert "60 records in 1 file." in done.stdout
    assert "Unmount" not in done.stdout, "no stick is mounted there"
    (said,) = done.stderr.splitlines()  # and no bar where no terminal is
    assert said.startswith(f"WARNING: {tmp_path} lies on a disk of this machine itself")
    assert seqs(tmp_path) == ALL
    assert agent.ledger(STREAM) == before
    found = document(agent, "check", str(path))
    assert (found["verdict"], found["device"], found["part"]) == ("whole", "d", 1)
    assert (found["signer"], found["records"], found["more"]) == ("this device's key", 60, False)
    assert found["by"] == document(agent, "key")["key"]
    text = call(agent, "check", str(path)).stdout
    assert f"{STREAM} #1 to #60" in text
    path.write_bytes(path.read_bytes()[:-1])
    assert document(agent, "check", str(path), code=7)["verdict"] == "cut_off"
    assert document(agent, "check", "/nix", code=7)["verdict"] == "unreadable"


def test_a_folder_that_is_called_like_a_left_over_is_passed_over(
    agent: Device, tmp_path: Path
) -> None:
    planted = tmp_path / ".holdfast-x.part"
    planted.mkdir()
    assert document(agent, "export", str(tmp_path))["verdict"] == "done"
    assert planted.is_dir()


def test_parts_stay_below_their_size(agent: Device, tmp_path: Path) -> None:
    found = document(agent, "export", str(tmp_path), "--part-size", "1")
    assert (found["verdict"], found["records"]) == ("done", 60)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert [one["size_bytes"] for one in found["files"]] == [
        Path(one["file"]).stat().st_size for one in found["files"]
    ]
    assert len(sizes) >= PARTS
    assert max(sizes) <= 1 << 20
    assert seqs(tmp_path) == ALL
    again = document(agent, "export", str(tmp_path), "--continue")
    assert (again["verdict"], again["files"]) == ("nothing", [])


def test_a_terminal_shows_how_far_it_is(agent: Device, tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    command = [str(HOLDFAST), "bundle", "export", str(tmp_path), "--config", str(agent.config)]
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        timeout=DEADLINE_S,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0
    assert "100%" in shown


def test_no_folder_is_said_before_anything_is_done(agent: Device, tmp_path: Path) -> None:
    done = call(agent, "export", str(tmp_path / "usb"))
    assert (done.returncode, "mount the stick" in done.stderr) == (8, True)
    assert not (tmp_path / "usb").exists()


def test_without_an_agent_only_check_works(tmp_path: Path) -> None:
    device = made(tmp_path)
    (tmp_path / "x.ack.hfb").write_bytes(ack_bundle(ack.Ack({})))
    for command in (["export", str(tmp_path)], ["import", str(tmp_path)], ["key"]):
        assert call(device, *command).returncode == 3
    found = document(device, "check", str(tmp_path / "x.ack.hfb"))
    assert (found["kind"], found["signer"]) == ("ack", "a key of the fleet")


# A stick that is too small


def test_too_small_a_stick_takes_what_fits_and_another_the_rest(
    agent: Device, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with small("tmpfs", tmp_path) as stick:
        with (stick / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(stick).free - (3 << 20))
        done = call(agent, "export", str(stick))
        assert done.returncode == 8
        assert "3.0 MiB are free" in done.stderr
        assert "--partial" in done.stderr
        assert [one.name for one in stick.iterdir()] == ["ballast"]
        found = document(agent, "export", str(stick), "--partial", "--part-size", "1", code=8)
        assert (found["verdict"], len(found["files"])) == ("unfinished", 3)
        assert "--continue" in found["hint"]
        assert len(list(stick.iterdir())) == 4, "what is not whole does not stay"
        here = seqs(stick)
    rest = document(agent, "export", str(other), "--continue")
    assert rest["verdict"] == "done"
    assert sorted(here + seqs(other)) == ALL


def test_a_stick_that_is_read_only_is_told_as_such(agent: Device, tmp_path: Path) -> None:
    with small("tmpfs", tmp_path) as stick:
        (stick / ".holdfast-old.part").touch()
        subprocess.run(["mount", "-o", "remount,ro", str(stick)], check=True)
        for more in ([], ["--continue"], ["--partial"]):
            done = call(agent, "export", str(stick), *more)
            assert (done.returncode, "mounted read-only" in done.stderr) == (8, True)


# A stick that is pulled


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Disk]:
    needs_fuse()
    with Disk(tmp_path / "stick") as disk:
        yield disk


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("rename", errno.EIO),
        ("create", errno.EROFS),
    ],
)
def test_what_was_not_written_is_written_later(
    agent: Device, stick: Disk, tmp_path: Path, operation: str, error: int
) -> None:
    stick.rule("*.part", [operation], errno=error, skip=2, times=1)
    found = document(agent, "export", str(stick.mount), "--part-size", "1", code=8)
    assert stick.clear() == 1
    assert all(Path(one["file"]).exists() for one in found["files"])
    assert len(found["files"]) == len(list(stick.mount.iterdir()))
    assert ("no more room" in found["error"]) is (error == errno.ENOSPC)
    rest = document(agent, "export", str(stick.mount), "--continue")
    assert rest["verdict"] == "done"
    parts = cargo(stick.mount)
    assert sorted(seq for _, seq in parts.records) == ALL
    assert [one.header.part for one in parts.sealed] == list(range(1, len(parts.sealed) + 1))
    follows = [one.header.follows for one in parts.sealed]
    assert follows == ["", *(one.digest for one in parts.sealed[:-1])]


@pytest.mark.parametrize("pull", range(PULLS))
def test_a_stick_pulled_in_the_middle_holds_whole_files_alone(
    agent: Device, stick: Disk, pull: int
) -> None:
    """Its power is cut, and what was not synced is there or not, sector by sector."""
    chance = random.Random(SEED * 1000 + pull)
    command = [str(HOLDFAST), "bundle", "export", str(stick.mount), "--part-size", "1"]
    command += ["--config", str(agent.config), "--json"]
    stick.rule("*", ["write"], delay_s=0.02)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as export:
        wanted = chance.randrange(1, WRITES)
        until(lambda: stick.hits() >= wanted or export.poll() is not None, "it writes")
        left = stick.cut(seed=pull, keep=chance.random())
        said, _ = export.communicate(timeout=DEADLINE_S)
    found = json.loads(said)
    assert (export.returncode, found["verdict"]) in ((8, "unfinished"), (0, "done"))
    named = {Path(one["file"]).name for one in found["files"]}
    whole = {path.name for path in left.glob("holdfast-*.hfb")}
    assert named <= whole, "what was said to be there is"
    cargo(left)  # and each is whole
    assert agent.ledger(STREAM)["held"] == RECORDS


@pytest.mark.parametrize("pull", range(PULLS))
def test_a_command_killed_in_the_middle_leaves_whole_files_alone(
    agent: Device, stick: Disk, pull: int
) -> None:
    chance = random.Random(SEED * 1000 + pull)
    command = [str(HOLDFAST), "bundle", "export", str(stick.mount), "--part-size", "1"]
    stick.rule("*", ["write"], delay_s=0.02)
    with subprocess.Popen([*command, "--config", str(agent.config)]) as export:
        wanted = chance.randrange(1, WRITES)
        until(lambda: stick.hits() >= wanted or export.poll() is not None, "it writes")
        export.kill()
    stick.clear()
    found = document(agent, "export", str(stick.mount), "--part-size", "1")
    assert (found["verdict"], found["away"]) == ("done", True)
    assert not list(stick.mount.glob(".*"))
    done = call(agent, "export", str(stick.mount))
    assert ("Unmount the stick" in done.stdout, done.stderr) == (True, "")
    Path(done.stdout.split()[0]).unlink()
    assert seqs(stick.mount, found["export"]) == ALL


def test_a_new_export_ends_the_one_before(agent: Device, stick: Disk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    command = [str(HOLDFAST), "bundle", "export", str(stick.mount), "--json"]
    stick.rule("*", ["write"], delay_s=0.5)
    with subprocess.Popen(
        [*command, "--config", str(agent.config)], stdout=subprocess.PIPE
    ) as export:
        until(lambda: stick.hits() > 0, "it writes")
        assert document(agent, "export", str(other))["verdict"] == "done"
        stick.clear()
        said, _ = export.communicate(timeout=DEADLINE_S)
    assert export.returncode == 8
    assert "another export has begun" in json.loads(said)["error"]
    assert list(stick.mount.iterdir()) == []
    assert seqs(other) == ALL


# Encrypted


def encrypting(device: Device, folder: Path, recipient: str) -> Path:
    """The device's configuration with a recipient."""
    text, marker = device.config.read_text(), "bundle:\n"
    assert marker in text
    (folder / "config.yaml").write_text(
        text.replace(marker, f"{marker}  recipients: [{recipient}]\n")
    )
    return folder / "config.yaml"


def test_no_plaintext_lies_on_the_stick(agent: Device, tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    config_file = encrypting(agent, tmp_path, str(identity.to_public()))
    usb = tmp_path / "usb"
    usb.mkdir()
    found = document(agent, "export", str(usb), "--part-size", "1", at=config_file)
    assert found["verdict"] == "done"
    whole = tmp_path / "plain"
    whole.mkdir()
    for path in sorted(usb.iterdir()):
        assert path.name.endswith(".hfb.age")
        content = path.read_bytes()
        assert content.startswith(b"age-encryption.org/v1\n")
        assert bundle.MAGIC not in content
        (whole / path.stem).write_bytes(pyrage.decrypt(content, [identity]))
        assert document(agent, "check", str(path), code=7)["verdict"] == "encrypted"
    assert seqs(whole) == ALL


def test_what_is_encrypted_opens_with_age(agent: Device, tmp_path: Path) -> None:
    age, identity = program("age", "age"), tmp_path / "identity"
    keygen = subprocess.run(
        [program("age-keygen", "age"), "-o", str(identity)], capture_output=True, text=True
    )
    recipient = keygen.stderr.split()[-1]
    assert recipient.startswith("age1")
    usb = tmp_path / "usb"
    usb.mkdir()
    (file,) = document(agent, "export", str(usb), at=encrypting(agent, tmp_path, recipient))[
        "files"
    ]
    opened = [age, "-d", "-i", str(identity), "-o", str(tmp_path / "holdfast-d-x-1.hfb")]
    subprocess.run([*opened, file["file"]], check=True)
    assert seqs(tmp_path) == ALL


def test_a_recipient_that_is_none_is_told(agent: Device, tmp_path: Path) -> None:
    for recipient, word in (
        ("age1zzz", "bundle.recipients[0]: 'age1zzz' is no recipient"),
        ("nobody", "bundle.recipients[0]: expected a recipient of age"),
    ):
        config_file = encrypting(agent, tmp_path, recipient)
        done = call(agent, "export", str(tmp_path), at=config_file)
        assert (done.returncode, word in done.stderr) == (78, True)


# The way back


def test_ack_bundles_are_taken_or_refused_with_a_verdict(tmp_path: Path) -> None:
    device = made(tmp_path)
    epoch = stock(device)
    usb = tmp_path / "usb"
    usb.mkdir()
    right = ack_bundle(ack.Ack({epoch: {STREAM: ack.StreamAck(10)}}))
    word = ack.Ack({epoch: {STREAM: ack.StreamAck(60)}})
    others = {
        "1-wrong_device": ack_bundle(word, device="e"),
        "2-stranger": ack_bundle(word, key=STRANGER),
        "3-cut_off": right[:-1],
        "4-damaged": right[:300] + b"?" + right[301:],
        "5-not_a_bundle": b"x" * 100,
        "6-contradiction": ack_bundle(ack.Ack({epoch: {STREAM: ack.StreamAck(61)}})),
    }
    with running(device):
        assert "no bundle of the fleet is there" in call(device, "import", str(usb)).stderr
        for name, content in others.items():
            (usb / f"{name}.ack.hfb").write_bytes(content)
            found = document(device, "import", str(usb / f"{name}.ack.hfb"), code=7)
            (one,) = found["files"]
            assert one["verdict"] == name[2:]
        assert device.ledger(STREAM)["held"] == RECORDS
        (usb / "0-right.ack.hfb").write_bytes(right)
        found = document(device, "import", str(usb), code=7)
        verdicts = [one["verdict"] for one in found["files"]]
        assert verdicts == ["taken", *(name[2:] for name in others)]
        for name in others:
            if name != "1-wrong_device":
                (usb / f"{name}.ack.hfb").unlink()
        done = call(device, "import", str(usb))
        assert done.returncode == 0, "in a folder, those for other devices are passed over"
        assert "nothing new" in done.stdout
        assert "wrong device" in done.stdout
        (usb / "0-right.ack.hfb").unlink()
        found = document(device, "import", str(usb), code=7)
        assert [one["verdict"] for one in found["files"]] == ["wrong_device"]
        exported = document(device, "export", str(usb))["files"][0]["file"]
        found = document(device, "import", exported, code=7)
        assert found["files"][0]["verdict"] == "not_an_ack"
        assert document(device, "import", "/nix", code=7)["files"][0]["verdict"] == "unreadable"
        ledger = device.ledger(STREAM)
        assert (ledger["delivered"], ledger["held"]) == (10, 50)


def test_what_is_no_file_is_told(agent: Device, tmp_path: Path) -> None:
    pipe, link = tmp_path / "a\x1b[2J.ack.hfb", tmp_path / "b.ack.hfb"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path, what in ((pipe, "a pipe"), (link, "a link")):
        found = document(agent, "check", str(path), code=7)
        assert f"it is {what}, not a file" in found["error"]
    done = call(agent, "import", str(tmp_path))
    assert done.returncode == 7
    assert done.stdout.count("unreadable") == 2
    assert "\x1b" not in done.stdout
