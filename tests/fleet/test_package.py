"""`holdfast-fleet package`: what it writes, a device takes."""

import subprocess
import sys
from pathlib import Path

from agent.protocol.package import Package
from tests.outside import DEADLINE_S
from tests.updates.rig import NEW, wheel

FLEET = Path(sys.executable).with_name("holdfast-fleet")


def test_a_version_is_packed_and_signed(tmp_path: Path) -> None:
    wheels, out, key = tmp_path / "wheels", tmp_path / "agent.tar", tmp_path / "key"
    wheels.mkdir()
    words = [FLEET, "package", wheels, "--out", out, "--key", key, "--machine", "aarch64"]

    def called() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S)

    assert "0 wheels of Holdfast" in called().stderr
    assert not out.exists()
    wheel(wheels)
    done = called()
    assert done.returncode == 0, done.stderr
    public = done.stdout.split("signed by ")[1].strip()
    with out.open("rb") as file:
        made = Package(file, [public]).manifest
    assert (made.version, made.python, made.machine) == (NEW, "3.11", "aarch64")
    assert key.stat().st_mode & 0o077 == 0
