"""provisioning/install.sh, into a folder that stands for an image: this machine is not touched."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent import config_file
from tests.outside import DEADLINE_S, ROOT

INSTALL = ROOT / "provisioning" / "install.sh"
UNITS = ("holdfast.service", "holdfast-root.service", "holdfast-root.socket")
WHEEL = "holdfast-0.1.0-py3-none-any.whl"
# As small as a wheel can be: what is tested is where things go.
PARTS = {
    "fake_holdfast.py": "def main():\n    print('%s')\n",
    "holdfast-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: holdfast\nVersion: 0.1.0\n",
    "holdfast-0.1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
    "Tag: py3-none-any\n",
    "holdfast-0.1.0.dist-info/entry_points.txt": "[console_scripts]\n"
    "holdfast = fake_holdfast:main\nholdfast-root = fake_holdfast:main\n",
    "holdfast-0.1.0.dist-info/RECORD": "",
}


def wheels(folder: Path, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, text in PARTS.items():
            wheel.writestr(name, text.replace("%s", says))
    return folder


def install(*words: str, umask: int = -1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(INSTALL), *words],
        capture_output=True,
        umask=umask,
        text=True,
        timeout=4 * DEADLINE_S,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable},
    )


def image(folder: Path) -> Path:
    """What there is of a machine before."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\n")
    return folder


def files(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*")}


def test_all_is_installed_again_and_removed_and_what_is_yours_stays(tmp_path: Path) -> None:
    root, made = image(tmp_path / "an image"), wheels(tmp_path / "the wheels", "first")
    words = ("--root", str(root), "--wheels", str(made))
    done = install(*words, umask=0o077)  # as a careful root has it
    assert done.returncode == 0, done.stdout + done.stderr
    closed = [one for one in (root / "opt").rglob("*") if not one.stat().st_mode & 0o004]
    assert not closed, "the agent's user cannot read it"
    assert (root / "etc/holdfast/reset.d").stat().st_mode & 0o777 == 0o755
    script = root / "opt/holdfast/venv/bin/holdfast-root"
    assert "/opt/holdfast/venv/bin/python" in script.read_text()
    assert str(root) not in script.read_text()
    assert str(root) not in (root / "opt/holdfast/venv/pyvenv.cfg").read_text()
    for name in UNITS:
        shipped = ROOT / "provisioning" / "systemd" / name
        assert (root / "usr/lib/systemd/system" / name).read_text() == shipped.read_text()
    assert (root / "usr/lib/udev/rules.d/60-holdfast.rules").exists()
    assert (root / "opt/holdfast/models/speech").is_dir()
    assert not (root / "etc/systemd").exists(), "nothing is enabled that was not asked for"
    config = root / "etc/holdfast/config.yaml"
    assert config.stat().st_mode & 0o777 == 0o640
    assert config_file.load(config).watchdog.root_socket == "/run/holdfast-root.sock"
    if shutil.which("systemd-sysusers") and os.geteuid() == 0:
        assert "holdfast:x:" in (root / "etc/passwd").read_text()

    config.write_text("link: {ack_from: broker}\n")
    (root / "var/lib/holdfast/holdfast.db").write_text("records")
    before = files(root)
    wheels(made, "second")
    done = install(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stays as it is" in done.stdout
    assert config.read_text() == "link: {ack_from: broker}\n"
    assert files(root) == before
    (installed,) = root.glob("opt/holdfast/venv/lib/*/site-packages/fake_holdfast.py")
    assert "second" in installed.read_text(), "of one version number, and newer"

    done = install("uninstall", "--root", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left, for they are yours" in done.stdout
    assert not (root / "opt/holdfast").exists()
    assert not any((root / "usr/lib/systemd/system").iterdir())
    assert (root / "var/lib/holdfast/holdfast.db").read_text() == "records"
    assert config.exists()


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    root, made = image(tmp_path / "image"), wheels(tmp_path / "wheels", "first")
    before = files(root)
    done = install("--root", str(root), "--wheels", str(made), "--enable", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "holdfast-root.socket" in done.stdout
    assert f"systemctl --root={root} enable" in done.stdout
    assert files(root) == before
    done = install("uninstall", "--root", str(root), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert files(root) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--root", "/nowhere"), "is no folder"),
        (("--root",), "needs a folder"),
        (("--frobnicate",), "unknown"),
        (("--root", "/tmp", "--start"), "this machine"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], told: str) -> None:
    done = install(*words)
    assert done.returncode != 0
    assert told in done.stderr


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """As they are installed, but for the programs, which are not here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    for name in UNITS:
        text = (ROOT / "provisioning" / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/holdfast/venv/bin/", "/bin/true "))
    units = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--generators=no", *units],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [row for row in done.stderr.splitlines() if "holdfast" in row]
    assert not [row for row in ours if "Documentation" not in row], done.stderr
