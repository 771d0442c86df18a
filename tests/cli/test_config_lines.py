"""What is written into a configuration leaves all else in it as it was."""

import stat
from pathlib import Path

import pytest

from agent import config_file
from agent.cli import config_lines
from agent.errors import ConfigError
from tests.outside import ROOT

LINES: config_lines.Lines = {
    ("device_id",): "press-7",
    ("link", "broker_url"): "mqtts://broker.example",
    ("link", "ca_file"): "/var/lib/holdfast/identity/authority.pem",
    ("bundle", "fleet_keys"): ["hf1pub:" + "A" * 43 + "="],
}


@pytest.mark.parametrize("shipped", ["config/default.yaml", "provisioning/config.yaml"])
def test_the_shipped_files_take_them(shipped: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    before = (ROOT / shipped).read_text()
    path.write_text(before)
    path.chmod(0o640)
    assert config_lines.write(path, LINES)
    found = config_file.load(path)
    assert (found.device_id, found.link.broker_url) == ("press-7", "mqtts://broker.example")
    assert found.link.ca_file == LINES["link", "ca_file"]
    assert found.bundle.fleet_keys == LINES["bundle", "fleet_keys"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    kept = [line for line in before.splitlines() if "broker_url: mqtt:" not in line or "#" in line]
    after = path.read_text().splitlines()
    assert [line for line in kept if line not in after and "broker.invalid" not in line] == []
    assert not config_lines.write(path, LINES), "twice changes nothing"
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    true, link = tmp_path / "true.yaml", tmp_path / "config.yaml"
    true.write_text((ROOT / "provisioning/config.yaml").read_text())
    link.symlink_to(true)
    config_lines.write(link, LINES)
    assert link.is_symlink()
    assert "press-7" in true.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "link: {ack_from: broker}\n",
        "link:\n  ack_from: broker\nbundle:\n  fleet_keys:\n    - hf1pub:x\n",
        "? link\n: ack_from: broker\n",
    ],
)
def test_what_is_written_in_another_way_is_left_to_people(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        config_lines.write(path, LINES)
    assert path.read_text() == text
    assert "broker_url: " in raised.value.hint


def test_what_would_not_be_good_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("link:\n  ack_from: broker\n")
    for wrong in ({("link", "broker_url"): "http://x"}, {("nowhere", "keys"): []}):
        with pytest.raises(ConfigError):
            config_lines.write(path, wrong)
        assert path.read_text() == "link:\n  ack_from: broker\n"
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


def test_indents_and_comments_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "# mine\nlink:   # the way\n\n    # who\n    ack_from: broker\n\nlog_level: info"
    )
    config_lines.write(path, {("link", "broker_url"): "mqtt://b", ("device_id",): "d"})
    assert path.read_text() == (
        '# mine\nlink:   # the way\n    broker_url: "mqtt://b"\n\n    # who\n    ack_from: broker\n'
        '\nlog_level: info\ndevice_id: "d"\n'
    )
