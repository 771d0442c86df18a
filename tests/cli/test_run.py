"""How `holdfast run` begins and ends."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.store import head
from tests.cli.inbox import heard, inbox
from tests.cli.unprivileged import holdfast_unprivileged
from tests.inference.catalog.repository import install, linear
from tests.outside import DEADLINE_S, HOLDFAST, ROOT, Device, alive, holdfast, running, until


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, inbox(tmp_path))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_in_order_with_0(device: Device, sign: signal.Signals) -> None:
    with running(device):
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        child = device.status()["domains"]["audio"]["pid"]
        assert device.stop(sign) == 0
        until(lambda: not alive(child), "the domain's process has ended")
    assert "stopped" in device.log.read_text()
    assert "Traceback" not in device.log.read_text()


def segments_of_one(folder: Path, sample: bytes) -> int:
    """How many segments one recording gives when nothing disturbs."""
    device = Device(folder, inbox(folder))
    (folder / "inbox" / "a.flac").write_bytes(sample)
    with running(device):
        until((folder / "inbox/done/a.flac").exists, "it is taken in")
        until(lambda: heard(device), "it is heard")
        return int(device.ledger("inbox.segments")["produced"])


def test_a_signal_in_the_middle_of_the_work_ends_it_with_0_and_loses_nothing(
    device: Device, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sample = (ROOT / "samples" / "fan.flac").read_bytes()
    for i in range(5):
        (device.folder / "inbox" / f"{i}.flac").write_bytes(sample)
    with running(device):
        until(lambda: device.ledger("inbox.raw")["produced"] > 0, "it has begun")
        assert device.stop() == 0
        device.start()
        until(lambda: len(list((device.folder / "inbox/done").iterdir())) == 5, "all are taken in")
        until(lambda: heard(device), "all is heard")
        segments = device.ledger("inbox.segments")["produced"]
    one = segments_of_one(tmp_path_factory.mktemp("undisturbed"), sample)
    assert one > 0
    assert segments == 5 * one, "five equal recordings give equal segments"
    assert "Traceback" not in device.log.read_text()


def test_the_children_of_a_killed_agent_die_with_it(device: Device) -> None:
    with running(device):
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        child = device.status()["domains"]["audio"]["pid"]
        device.kill()
        until(lambda: not alive(child), "the domain's process has ended")


def test_a_hung_domain_does_not_keep_the_agent_from_ending(device: Device) -> None:
    with running(device):
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        child = device.status()["domains"]["audio"]["pid"]
        os.kill(child, signal.SIGSTOP)
        assert device.stop() == 0
        assert not alive(child)


def test_a_port_that_is_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = {"port": port, "socket": str(tmp_path / "holdfast.sock")}
        device = Device(tmp_path, {"api": api})
        done = holdfast("run", "--config", str(device.config))
    assert done.returncode == 78
    assert f"api.port: 127.0.0.1:{port}" in done.stderr
    assert "set another api.port" in done.stderr
    assert not (tmp_path / "holdfast.sock").exists()


@pytest.mark.parametrize("attempt", range(3))
def test_an_agent_that_answers_can_be_ended_in_order(device: Device, attempt: int) -> None:
    with running(device):  # until its socket answers, and not a moment longer
        assert device.stop() == 0
    assert "stopped" in device.log.read_text()


def begun_and_ended(device: Device) -> None:
    """Let the agent make its store."""
    with running(device):
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        assert device.stop() == 0


def refused(device: Device, *, unprivileged: bool = False) -> tuple[int, str]:
    """The exit code of an agent that cannot begin, and what it says; never a traceback."""
    run = holdfast_unprivileged if unprivileged else holdfast
    done = run("run", "--config", str(device.config))
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("  try: "), "no hint"
    return done.returncode, done.stderr


def test_a_second_agent_on_the_same_store_ends_with_75_and_the_first_goes_on(
    device: Device, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = Device(tmp_path_factory.mktemp("second"), {"store": {"path": str(device.store)}})
    with running(device):
        code, said = refused(second)
        assert code == 75
        assert f"{device.store}: another agent holds this store" in said
        assert device.answers()


def test_a_store_folder_without_rights_ends_with_73(device: Device) -> None:
    device.store.parent.mkdir()
    device.store.parent.chmod(0o500)
    code, said = refused(device, unprivileged=True)
    assert code == 73
    assert f"{device.store}: the store cannot be opened: Permission denied" in said
    assert f"write access to {device.store.parent}" in said


def test_a_store_folder_that_cannot_be_made_ends_with_73(device: Device) -> None:
    device.store.parent.write_text("a file in its place")
    code, said = refused(device)
    assert code == 73
    assert str(device.store) in said


def test_a_store_that_may_only_be_read_ends_with_73_and_is_left_as_it_is(device: Device) -> None:
    begun_and_ended(device)
    content = device.store.read_bytes()
    device.store.chmod(0o400)
    code, said = refused(device, unprivileged=True)
    assert code == 73
    assert str(device.store) in said
    assert device.store.read_bytes() == content


def test_a_store_that_is_no_database_ends_with_73_and_is_left_as_it_is(device: Device) -> None:
    device.store.parent.mkdir()
    device.store.write_text("somebody's notes\n" * 100)
    code, said = refused(device)
    assert code == 73
    assert "not a SQLite file" in said
    assert device.store.read_text() == "somebody's notes\n" * 100


def test_a_folder_in_the_place_of_the_store_ends_with_73(device: Device) -> None:
    device.store.mkdir(parents=True)
    assert refused(device)[0] == 73


def test_a_store_of_a_newer_holdfast_ends_with_73_and_is_left_as_it_is(device: Device) -> None:
    begun_and_ended(device)
    with sqlite3.connect(device.store) as db:
        db.execute("PRAGMA user_version = 999")
        db.execute("UPDATE meta SET value = 999 WHERE key = 'opens_from'")
    db.close()
    head.write(device.store, msgspec.structs.replace(head.read(device.store), version=999))
    code, said = refused(device)
    assert code == 73
    assert "999" in said


def down(device: Device) -> dict[str, Any]:
    """The condition of the domain that cannot start."""

    def found() -> list[dict[str, Any]]:
        held = device.status()["conditions"]
        return [c for c in held if c["name"] == "domain_down" and c["cause"] != "starting"]

    until(lambda: bool(found()), "the domain is said to be down")
    return found()[0]


@pytest.mark.parametrize("models", ["nowhere", "empty"])
def test_a_model_that_is_not_there_costs_its_domain_alone(tmp_path: Path, models: str) -> None:
    (tmp_path / "empty" / "speech" / "1").mkdir(parents=True)
    device = Device(tmp_path, {"models": {"path": str(tmp_path / models)}})
    with running(device):
        condition = down(device)
        assert condition["subject"] == "audio"
        assert str(tmp_path / models / "speech") in condition["cause"]


def test_a_damaged_model_is_not_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "speech", tmp_path / "models" / "speech")
    for model in tmp_path.glob("models/speech/*/*.onnx"):
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)
    device = Device(tmp_path, {"models": {"path": str(tmp_path / "models")}})
    with running(device):
        condition = down(device)
        assert "sha256" in condition["cause"]
        assert "install the model again" in condition["remedy"]
        assert device.status()["domains"]["audio"]["pid"] is None


def test_a_model_that_cannot_hear_is_not_asked_to_and_its_sound_waits(tmp_path: Path) -> None:
    install(tmp_path / "models", linear(), "m")
    settings = {"models": {"path": str(tmp_path / "models")}, **inbox(tmp_path)}
    device = Device(tmp_path, {**settings, "domains": {"audio": {"models": ["m"]}}})
    shutil.copy(ROOT / "samples" / "fan.flac", tmp_path / "inbox")
    with running(device):
        condition = down(device)
        assert "is for the engine onnx, and its domain runs speech" in condition["cause"]
        assert "another model in the domain" in condition["remedy"]
        until(lambda: device.ledger("inbox.raw")["held"] > 0, "the sound is taken in")
        assert "processed" not in device.ledger("inbox.raw")["dropped"]
        assert device.stop() == 0


def test_a_socket_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    path = tmp_path / ("s" * 120)
    device = Device(tmp_path, {"api": {"port": 0, "socket": str(path)}})
    code, said = refused(device)
    assert code == 78
    assert "api.socket" in said


def test_the_agent_begins_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    store = tmp_path / "a" / "b" / "holdfast.db"
    device = Device(tmp_path, {"store": {"path": str(store)}})
    with running(device):
        assert store.exists()
        assert store.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_an_agent_without_standard_files_works(device: Device, closed: str) -> None:
    command = f'exec "{HOLDFAST}" run --config "{device.config}" {closed}'
    process = subprocess.Popen(["/bin/sh", "-c", command], stderr=subprocess.DEVNULL)
    try:
        until(device.answers, "the agent answers")
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reader_of_the_log_that_stalls_holds_up_nobody(device: Device) -> None:
    """The pipe is full before the first line; nobody ever reads it."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    command = [str(HOLDFAST), "run", "--config", str(device.config)]
    process = subprocess.Popen(command, stderr=write)
    try:
        until(device.answers, "the agent answers")
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)


# Python's own words at a Ctrl-C before it runs any of our code; after some of them it goes on.
PYTHON_IS_NOT_UP = ("Fatal Python error: init_", "Failed checking if argv[0]")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A test in the background inherits that Ctrl-C is ignored, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("delay_ms", range(0, 500, 50))
def test_ctrl_c_while_it_begins_leaves_no_traceback(device: Device, delay_ms: int) -> None:
    command = [str(HOLDFAST), "run", "--config", str(device.config)]

    def lost() -> bool:
        return any(one in device.log.read_text() for one in PYTHON_IS_NOT_UP)

    with device.log.open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay_ms / 1000)
            process.send_signal(signal.SIGINT)
            until(lambda: process.poll() is not None or lost(), "it ends")
        finally:
            process.kill()
    said = device.log.read_text()
    if not lost():
        assert process.returncode in (0, -signal.SIGINT), said
        assert "/agent/" not in said, "a traceback from our own code"


def test_a_module_in_the_working_directory_is_not_loaded(device: Device) -> None:
    for name in ("soxr", "numpy", "amqtt"):
        (device.folder / f"{name}.py").write_text("raise SystemExit('loaded')\n")
    with device.log.open("ab") as log:
        process = subprocess.Popen(
            [str(HOLDFAST), "run", "--config", str(device.config)], stderr=log, cwd=device.folder
        )
    try:
        until(device.answers, "the agent answers")
        until(lambda: device.status()["domains"]["audio"]["ready"], "the domain is ready")
    finally:
        process.kill()
        process.wait()


def test_what_people_said_is_not_for_every_user_to_read(device: Device) -> None:
    with running(device):
        until(lambda: (device.store.parent / "status.json").exists(), "the snapshot is there")
        found = {path.name: path.stat().st_mode & 0o007 for path in device.store.parent.iterdir()}
    assert found.keys() >= {"holdfast.db", "holdfast.db-wal", "status.json"}
    assert set(found.values()) == {0}
