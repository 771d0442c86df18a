"""What an operator chose is there after a crash, whenever that comes."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent.errors import ModelError
from agent.inference.domains.choices import Choice, Choices
from tests.inference.domains.rig import put, running
from tests.outside import ROOT

LONG = os.environ.get("HOLDFAST_LONG") == "1"
KILLS = 200 if LONG else 12
WRITER = """
import sys
from pathlib import Path
from agent.inference.domains.choices import Choices
choices, version = Choices(Path(sys.argv[1])), 1
print("ready", flush=True)
while True:
    version += 1
    choices.choose("m", version, version - 1)
    print(version, flush=True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.json"


def test_the_version_before_is_remembered_and_they_change_places(file: Path) -> None:
    choices = Choices(file)
    assert choices.of("m") is None
    choices.choose("m", 2, 1)
    choices.choose("n", 7, None)
    assert Choices(file).of("m") == Choice(2, 1)
    choices.choose("m", 1, 2)
    choices.choose("m", 1, 1)  # it serves already
    assert Choices(file).of("m") == Choice(1, 2)
    assert Choices(file).of("n") == Choice(7)


def test_after_a_restart_that_saw_no_version_serve_the_one_before_is_still_known(
    file: Path,
) -> None:
    Choices(file).choose("m", 2, 1)
    Choices(file).choose("m", 3, None)
    assert Choices(file).of("m") == Choice(3, 2)


def test_what_is_put_aside_stays_so_until_it_is_chosen(file: Path) -> None:
    Choices(file).choose("m", 2, 1)
    Choices(file).put_aside("m", 2)
    assert Choices(file).of("m") == Choice(2, 1, unloaded=True)
    Choices(file).choose("m", 2, None)
    assert Choices(file).of("m") == Choice(2, 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"m": 1}', b"\xff", b'{"m": {}}'])
def test_a_file_that_cannot_be_read_is_said_and_counts_as_none(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(content)
    choices = Choices(file)
    assert str(file) in caplog.text
    assert choices.of("m") is None
    choices.choose("m", 2, None)
    assert Choices(file).of("m") == Choice(2)


def test_a_kill_at_any_moment_leaves_the_old_choice_or_the_new_one(file: Path) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "1"))
    pause = random.Random(seed)
    Choices(file).choose("m", 1, None)
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(pause.uniform(0, 0.02))
            writer.kill()
            said = [int(line) for line in writer.stdout if line.endswith("\n")]
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, Choice])["m"]
        assert found.version in {last := (said or [1])[-1], last + 1} or not said, (seed, said)
        assert Choices(file).of("m") == found
        Choices(file).choose("m", 1, None)


async def test_a_choice_outlives_the_domains_and_so_does_the_way_back(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, 1)
    async with running(root) as rig:
        put(root, 2)
        put(root, 3)
        await rig.domains.load("m", 2)
    async with running(root) as rig:
        assert await rig.version() == 2
        assert (await rig.domains.roll_back("m")).manifest.version == 1
    async with running(root) as rig:
        assert await rig.version() == 1
        assert (await rig.domains.roll_back("m")).manifest.version == 2
        (root / "m/2/model.onnx").write_bytes(b"spoilt")
    async with running(root) as rig:
        assert await rig.version() == 1
        assert "m/2" in rig.domains.instead(rig.domains.named("d"))["m"]


async def test_what_cannot_be_noted_serves_and_is_said(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, 1)
    async with running(root) as rig:
        put(root, 2)
        rig.file.mkdir()
        (rig.file / "in the way").touch()
        with pytest.raises(ModelError, match="cannot be noted"):
            await rig.domains.load("m", 2)
        assert await rig.version() == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"\xff": {"version": 1}}', b'{"m": {"version": 1, "x": ' + b"[" * 100_000],
    ids=["empty", "a list", "no UTF-8", "nested"],
)
def test_a_damaged_file_is_as_none(
    file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(content)
    choices = Choices(file)
    assert choices.of("m") is None
    assert "the newest version of each model serves" in caplog.text
    choices.choose("m", 2, 1)
    assert Choices(file).of("m") == Choice(2, 1)


def test_a_pipe_in_its_place_holds_nobody_up(file: Path) -> None:
    os.mkfifo(file)
    assert Choices(file).of("m") is None
