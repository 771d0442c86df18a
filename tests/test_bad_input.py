"""What people and machines get wrong, end to end: a clear message, an exit code, nothing lost."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from tests.cli.unprivileged import UnprivilegedDevice
from tests.outside import ROOT, Device, as_json, holdfast, running, until

SAMPLE = ROOT / "samples" / "fan.flac"
BAD = ("notes.wav", "cut.flac", "empty.wav", "locked.wav")


def folder_source(folder: Path, name: str) -> dict[str, Any]:
    (folder / name).mkdir()
    path = str(folder / name)
    return {"kind": "folder", "name": name, "path": path, "poll_s": 0.05, "settle_s": 0.05}


def unlocked(path: Path) -> Iterator[None]:
    """Give the rights back, so that the folder can be thrown away."""
    yield
    path.chmod(0o700)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An agent that was given all that is bad, and something good beside it."""
    folder = tmp_path_factory.mktemp("agent")
    sources = [folder_source(folder, name) for name in ("inbox", "closed", "other")]
    device = UnprivilegedDevice(folder, {"audio": {"sources": sources}})
    inbox = folder / "inbox"
    (inbox / "notes.wav").write_text("remember the milk\n")
    (inbox / "cut.flac").write_bytes(SAMPLE.read_bytes()[: SAMPLE.stat().st_size // 2])
    (inbox / "empty.wav").touch()
    (inbox / "locked.wav").write_bytes(SAMPLE.read_bytes())
    (inbox / "locked.wav").chmod(0)
    (inbox / "good.flac").write_bytes(SAMPLE.read_bytes())
    (folder / "other" / "also good.flac").write_bytes(SAMPLE.read_bytes())
    (folder / "closed").chmod(0)
    with contextlib.contextmanager(unlocked)(folder / "closed"), running(device):
        until(lambda: (inbox / "done" / "good.flac").exists(), "the good one is taken in")
        until(lambda: len(list((inbox / "rejected").glob("*.reason.txt"))) == 4, "four are refused")
        until(lambda: device.ledger("inbox.raw")["held"] == 0, "all is heard")
        until(lambda: (folder / "other/done/also good.flac").exists(), "the other one too")
        until(lambda: device.ledger("other.raw")["held"] == 0, "all is heard")
        yield device


def reason(agent: Device, name: str) -> str:
    return (agent.folder / "inbox" / "rejected" / f"{name}.reason.txt").read_text()


def test_a_text_file_named_wav_is_refused_with_what_was_expected(agent: Device) -> None:
    assert reason(agent, "notes.wav").startswith("notes.wav: not a recording")
    assert "expected WAV, FLAC, Ogg Opus" in reason(agent, "notes.wav")


def test_a_truncated_flac_is_refused_with_how_far_it_goes(agent: Device) -> None:
    seconds = soundfile.info(SAMPLE).duration
    assert reason(agent, "cut.flac").startswith("cut.flac: breaks off after")
    assert f"of {seconds:.2f} s" in reason(agent, "cut.flac")
    assert "copy it here again" in reason(agent, "cut.flac")


def test_a_file_of_no_bytes_is_refused_as_empty(agent: Device) -> None:
    assert reason(agent, "empty.wav").startswith("empty.wav: the file is empty (0 bytes)")


def test_a_recording_without_rights_is_refused_for_its_rights(agent: Device) -> None:
    assert reason(agent, "locked.wav").startswith("locked.wav: Permission denied")
    assert "give read access" in reason(agent, "locked.wav")


@pytest.mark.parametrize("name", BAD)
def test_every_refusal_is_logged_and_the_file_is_kept(agent: Device, name: str) -> None:
    assert (agent.folder / "inbox" / "rejected" / name).exists()
    lines = [line for line in agent.log.read_text().splitlines() if f"refused {name}" in line]
    assert len(lines) == 1
    assert lines[0].startswith("<4>source: inbox: ")


def test_status_counts_the_refused_files(agent: Device) -> None:
    assert agent.status()["sources"]["inbox"]["rejected"] == len(BAD)
    shown = holdfast("status", "--config", str(agent.config)).stdout
    assert f"rejected {len(BAD)}" in " ".join(shown.split())


def test_a_folder_without_rights_is_a_condition_and_the_others_are_heard(agent: Device) -> None:
    conditions = {(c["name"], c["subject"]): c for c in agent.status()["conditions"]}
    held = conditions["source_unreadable", "closed"]
    assert held["severity"] == "warning"
    assert str(agent.folder / "closed") in held["cause"]
    assert "Permission denied" in held["cause"]
    assert "may read and write it" in held["remedy"]
    assert ("source_unreadable", "inbox") not in conditions
    done = holdfast("status", "--config", str(agent.config))
    assert done.returncode == 4
    assert "source_unreadable (closed)" in done.stdout


def test_the_good_files_beside_the_bad_ones_are_in_the_ledger(agent: Device) -> None:
    for source in ("inbox", "other"):
        raw, segments = agent.ledger(f"{source}.raw"), agent.ledger(f"{source}.segments")
        assert raw["produced"] == raw["dropped"]["processed"] > 0
        assert segments["held"] == segments["produced"] > 0
        assert segments["dropped"] == {}
    assert agent.ledger("inbox.segments") == agent.ledger("other.segments"), "the same recording"


def test_rights_that_are_given_later_are_enough(tmp_path: Path) -> None:
    source = folder_source(tmp_path, "inbox")
    device = UnprivilegedDevice(tmp_path, {"audio": {"sources": [source]}})
    inbox = tmp_path / "inbox"
    (inbox / "good.flac").write_bytes(SAMPLE.read_bytes())
    inbox.chmod(0)
    with contextlib.contextmanager(unlocked)(inbox), running(device):
        until(lambda: said(device, "source_unreadable"), "it is said")
        inbox.chmod(0o700)
        until(lambda: (inbox / "done" / "good.flac").exists(), "it is taken in")
        until(lambda: not said(device, "source_unreadable"), "it is over")


def said(device: Device, name: str) -> bool:
    """Whether a condition of this name holds."""
    return any(c["name"] == name for c in device.status()["conditions"])


def test_audio_of_a_source_that_left_the_configuration_is_heard_or_said(tmp_path: Path) -> None:
    """It was accepted under the name that the source had before the agent was killed."""
    source = folder_source(tmp_path, "inbox")
    device = Device(tmp_path, {"audio": {"sources": [source]}})
    for i in range(20):
        (tmp_path / "inbox" / f"{i}.flac").write_bytes(SAMPLE.read_bytes())
    with running(device):
        until(lambda: device.ledger("inbox.raw")["held"] > 0, "some of it is accepted")
        device.kill()
        settings = yaml.safe_load(device.config.read_text())
        settings["audio"]["sources"][0]["name"] = "hall"
        device.config.write_text(yaml.safe_dump(settings))
        device.start()
        assert device.ledger("inbox.raw")["held"] > 0, "all was heard before the kill"
        until(
            lambda: (
                device.ledger("inbox.raw")["held"] == 0
                or any("inbox" in c["subject"] for c in device.status()["conditions"])
            ),
            "what waits under the old name is heard, or a condition names it",
            deadline_s=10,
        )


WRONG = {
    "a wrong key": (
        "link:\n  ack_from: ingest\naudio:\n  sourcs: []\n",
        ":4: audio.sourcs: unknown key",
        "did you mean sources?",
    ),
    "a wrong type": (
        "link:\n  ack_from: ingest\napi:\n  port: http\n",
        ":4: api.port: expected `int`, got `str`; found 'http'",
        "schema.json",
    ),
    "an unknown unit": (
        "link:\n  ack_from: ingest\n  ack_timeout_ms: 3000\n",
        ":3: link.ack_timeout_ms: unknown unit 'ms'; this setting is in seconds",
        "write ack_timeout_s",
    ),
    "a unit in a value": (
        "link:\n  ack_from: ingest\n  ack_timeout_s: 30 s\n",
        ":3: link.ack_timeout_s: '30 s' carries a unit; expected a plain number",
        "write the number alone, in seconds",
    ),
    "broken YAML": ("link: [\n", "not YAML", "mend the syntax"),
    "nothing": ("", "expected sections", "config/default.yaml"),
}


@pytest.mark.parametrize("command", [["run"], ["config", "check"], ["status"]])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_ends_every_command_with_78(
    tmp_path: Path, name: str, command: list[str]
) -> None:
    text, message, hint = WRONG[name]
    path = tmp_path / "holdfast.yaml"
    path.write_text(text)
    done = holdfast(*command, "--config", str(path), cwd=tmp_path)
    assert done.returncode == 78
    assert done.stdout == ""
    first, *_, last = done.stderr.splitlines()
    assert first.startswith(f"holdfast: {path}")
    assert message in first
    assert last.startswith("  try: ")
    assert hint in last
    assert sorted(tmp_path.iterdir()) == [path], "nothing is made before the file is right"


def test_a_configuration_that_is_not_there_ends_with_78(tmp_path: Path) -> None:
    done = holdfast("run", "--config", str(tmp_path / "absent.yaml"))
    assert done.returncode == 78
    assert "absent.yaml: cannot be read" in done.stderr


def test_a_configuration_broken_under_a_running_agent_leaves_it_running(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    with running(device):
        good = device.config.read_text()
        device.config.write_text("link: [\n")
        assert holdfast("status", "--config", str(device.config)).returncode == 78
        assert device.answers()
        device.config.write_text(good)
        done = holdfast("status", "--json", "--config", str(device.config))
        assert as_json(done)["device"] == yaml.safe_load(good)["device_id"]
