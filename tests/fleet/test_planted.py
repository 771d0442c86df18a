"""Sticks with what somebody planted: links, pipes, devices, folders, and signed nonsense."""

import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.clock import Clock
from agent.errors import BundleError
from agent.protocol import bundle
from fleet.stick import stick
from fleet.stick.bundle import MISSING_MAX, Sticks
from fleet.store import database
from fleet.store.cloud import Cloud
from tests.fleet.look import rows
from tests.fleet.sender import Sender
from tests.fleet.test_bundle import FLEET_COMMAND
from tests.outside import DEADLINE_S, ROOT
from tests.sync.bundles import FLEET, STRANGER

SENDER = Sender("d")
EXPORTS = ("0123456789abcdef", "1123456789abcdef", "2123456789abcdef")


def header(export: str, **other: Any) -> bundle.Header:
    word: dict[str, Any] = {"kind": "data", "device": "d", "export": export, "part": 1}
    return bundle.Header(**word | {"by": STRANGER.public, "created": ""} | other)


def signed(export: str, seq: int, **other: Any) -> bytes:
    """An export of one record, as its device signs it."""
    writer = bundle.Writer(header(export, **other), STRANGER)
    content = writer.begin() + writer.frame(bundle.BATCH, SENDER.batch([seq]).payload)
    return content + writer.end(bundle.Footer(frames=1, records=1, blob_bytes=0, covers={}))


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as cloud:
        yield cloud


@pytest.fixture
async def sticks(cloud: Cloud) -> Sticks:
    found = Sticks(cloud, (), Clock())
    await found.trust("d", STRANGER.public)
    return found


class Command:
    """`holdfast-fleet bundle` over one database, which trusts the device."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._keys = ("--key-file", str(folder / "fleet.key"))
        self._run("trust", "d", STRANGER.public, "--database", url)

    def import_(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and what it prints."""
        done = self._run("import", *arguments, *self._keys, "--database", self._url)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    def check(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._run("check", str(path), "--json").stdout)
        return found

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(FLEET_COMMAND), "bundle", *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            cwd=ROOT,
        )


@pytest.fixture
def usb(tmp_path: Path) -> Path:
    (tmp_path / "usb").mkdir()
    return tmp_path / "usb"


def test_only_files_are_read_and_the_rest_is_told(url: str, tmp_path: Path, usb: Path) -> None:
    command = Command(url, tmp_path)
    (tmp_path / "elsewhere").write_bytes(signed(EXPORTS[1], 2))
    os.mkfifo(usb / "a-pipe.hfb")
    (usb / "b-device.hfb").symlink_to("/dev/zero")
    (usb / "c-link.hfb").symlink_to(tmp_path / "elsewhere")
    (usb / "d-folder.hfb").mkdir()
    (usb / "e-true.hfb").write_bytes(signed(EXPORTS[0], 1))
    (usb / "f-\udcff\x1b[2J.hfb").write_bytes(b"")
    code, text = command.import_(str(usb))
    assert code == 7
    for what in ("a pipe", "a link", "a folder"):
        assert f"it is {what}, not a file" in text
    assert text.count("it is a link") == 2
    assert "e-true.hfb: stored: part 1" in text
    assert "f-\ufffd\\x1b[2J.hfb: NOT TAKEN (cut_off)" in text
    assert (usb / f"holdfast-d-{EXPORTS[0]}.ack.hfb").is_file()
    for name in ("a-pipe.hfb", "b-device.hfb"):
        assert command.check(usb / name)["verdict"] == "unreadable"


def test_what_is_no_bundle_is_not_copied(usb: Path) -> None:
    """One with a true beginning, and then nothing, for as long as may be."""
    endless = usb / "x.hfb"
    endless.write_bytes(bundle.Writer(header(EXPORTS[0]), STRANGER).begin())
    os.truncate(endless, 1 << 40)
    with tempfile.TemporaryFile() as copy:
        with pytest.raises(BundleError) as caught:
            stick.verified(endless, copy, ())
        assert caught.value.verdict == "damaged"
        assert copy.seek(0, os.SEEK_END) < 1 << 20


def test_no_room_for_a_copy_is_told_as_such(usb: Path) -> None:
    (usb / "x.hfb").write_bytes(signed(EXPORTS[0], 1))
    with Path("/dev/full").open("r+b", buffering=0) as full:
        with pytest.raises(BundleError) as caught:
            stick.verified(usb / "x.hfb", full, ())  # type: ignore[arg-type]
        assert caught.value.verdict == "no_room"


async def test_nothing_is_written_through_a_link(sticks: Sticks, tmp_path: Path, usb: Path) -> None:
    victim = tmp_path / "precious"
    victim.write_text("precious")
    (usb / "x.hfb").write_bytes(signed(EXPORTS[0], 1))
    name = f"holdfast-d-{EXPORTS[0]}.ack.hfb"
    (usb / f".{name}.part").symlink_to(victim)
    (usb / name).symlink_to(victim)
    answer = await sticks.answer(await sticks.take(usb / "x.hfb"), usb, FLEET)
    assert victim.read_text() == "precious"
    assert sorted(one.name for one in usb.iterdir()) == [name, "x.hfb"]
    assert not answer.is_symlink()
    with answer.open("rb") as file:
        assert bundle.verify(file).header.kind == "ack"


NONSENSE: dict[str, dict[str, Any]] = {
    "a part beyond all": {"part": 2**40},
    "a follows that is no digest": {"follows": "\0"},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_signed_nonsense_holds_up_no_other(url: str, tmp_path: Path, usb: Path, what: str) -> None:
    (usb / "x.hfb").write_bytes(signed(EXPORTS[0], 1, **NONSENSE[what]))
    (usb / "y.hfb").write_bytes(signed(EXPORTS[1], 2))
    code, text = Command(url, tmp_path).import_(str(usb))
    assert code == 7
    assert "x.hfb: NOT TAKEN (damaged)" in text
    assert "y.hfb: stored" in text
    answers = [one.name for one in usb.glob("*.ack.hfb")]
    assert answers == [f"holdfast-d-{EXPORTS[1]}.ack.hfb"]


def test_an_answer_that_cannot_be_written_holds_up_no_other(
    url: str, tmp_path: Path, usb: Path
) -> None:
    (usb / "x.hfb").write_bytes(signed(EXPORTS[0], 1))
    (usb / "y.hfb").write_bytes(signed(EXPORTS[1], 2))
    (usb / f".holdfast-d-{EXPORTS[0]}.ack.hfb.part").mkdir()
    code, text = Command(url, tmp_path).import_(str(usb))
    assert code == 7
    assert "x.hfb: NOT ANSWERED (no_ack)" in text
    assert [one.name for one in usb.glob("*.ack.hfb")] == [f"holdfast-d-{EXPORTS[1]}.ack.hfb"]


async def test_what_the_database_cannot_take_has_a_verdict(
    cloud: Cloud, sticks: Sticks, usb: Path
) -> None:
    for number, export in enumerate(EXPORTS[:2], 1):
        (usb / f"{number}.hfb").write_bytes(signed(export, number))
    await sticks.take(usb / "1.hfb")
    async with cloud.database.begin() as transaction:  # as a later schema may be
        await transaction.execute("CREATE UNIQUE INDEX one ON bundle_parts (device)")
    with pytest.raises(BundleError) as caught:
        await sticks.take(usb / "2.hfb")
    assert caught.value.verdict == "unfit"


async def test_of_parts_without_end_the_lowest_are_told(
    cloud: Cloud, sticks: Sticks, usb: Path
) -> None:
    (usb / "x.hfb").write_bytes(signed(EXPORTS[0], 1, part=bundle.PARTS_MAX, follows="0" * 64))
    found = await sticks.take(usb / "x.hfb")
    assert found.missing == list(range(1, MISSING_MAX + 1))
    async with cloud.database.begin() as transaction:  # as former versions let it in
        await transaction.execute("UPDATE bundle_parts SET part = $1", 2**40)
    (usb / "y.hfb").write_bytes(signed(EXPORTS[0], 2))
    assert (await sticks.take(usb / "y.hfb")).missing == list(range(2, MISSING_MAX + 2))
    assert await rows(cloud, "SELECT count(*) FROM bundle_parts") == [(2,)]
