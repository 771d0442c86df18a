"""`holdfast audio` against a real agent."""

from pathlib import Path

import soundfile

from tests.e2e.sound import SAMPLES, joined
from tests.outside import Device, as_json, holdfast, running


def test_a_recording_is_sent_and_its_segments_are_told(tmp_path: Path) -> None:
    device = Device(tmp_path, {})
    path = tmp_path / "a b.flac"
    soundfile.write(path, joined(SAMPLES, 1, 10.0), 16_000, format="FLAC")
    config = ("--config", str(device.config))
    with running(device):
        told = as_json(holdfast("audio", "send", str(path), "--source", "hand", "--json", *config))
        assert (told["status"], told["name"], told["length_s"]) == ("heard", "a b.flac", 10.0)
        assert told["segments"]
        for arguments in (("send", str(path)), ("show", str(told["take"]))):
            done = holdfast("audio", *arguments, "--source", "hand", *config)
            assert done.returncode == 0, done.stderr
            assert f"take {told['take']} of source hand, heard" in done.stdout
            assert "hand.segments #1" in done.stdout
        path.write_bytes(b"no sound")
        done = holdfast("audio", "send", str(path), *config)
        assert done.returncode == 1
        assert "begins with" in done.stderr
    assert holdfast("audio", "send", str(tmp_path / "none"), *config).returncode == 1
