"""provisioning/install.sh, into a folder that stands for an image: this machine is not touched."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent import config_file
from agent.config import Watchdog
from agent.host.slots.layout import Slot, Slots
from tests.outside import DEADLINE_S, ROOT

INSTALL = ROOT / "provisioning" / "install.sh"
UNITS = (
    *("holdfast.service", "holdfast-root.service", "holdfast-root.socket"),
    *("holdfast-build.service", "holdfast-trial.service"),
)
WHEEL = "holdfast-0.1.0-py3-none-any.whl"
# As small as a wheel can be: what is tested is where things go.
PARTS = {
    "fake_holdfast.py": "def main():\n    print('%s')\n",
    "holdfast-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: holdfast\nVersion: 0.1.0\n",
    "holdfast-0.1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
    "Tag: py3-none-any\n",
    "holdfast-0.1.0.dist-info/entry_points.txt": "[console_scripts]\n"
    "holdfast = fake_holdfast:main\nholdfast-root = fake_holdfast:main\n"
    "holdfast-fleet = fake_holdfast:main\n",
    "holdfast-0.1.0.dist-info/RECORD": "",
}


DROP_IN = {"system.conf.d", "system.conf.d/holdfast.conf"}


def wheels(folder: Path, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, text in PARTS.items():
            wheel.writestr(name, text.replace("%s", says))
    return folder


def install(
    *words: str, umask: int = -1, python: str | Path = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(INSTALL), *words],
        capture_output=True,
        umask=umask,
        text=True,
        timeout=4 * DEADLINE_S,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python)},
    )


def image(folder: Path) -> Path:
    """What there is of a machine before."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc" / "group").write_text("root:x:0:\n")
    return folder


def takes(root: Path, most: str) -> None:
    """Its watchdog's driver takes so many seconds."""
    board = root / "sys/class/watchdog/watchdog0"
    board.mkdir(parents=True)
    (board / "max_timeout").write_text(f"{most}\n")


def files(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*")}


def test_all_is_installed_again_and_removed_and_what_is_yours_stays(tmp_path: Path) -> None:
    root, made = image(tmp_path / "an image"), wheels(tmp_path / "the wheels", "first")
    words = ("--root", str(root), "--wheels", str(made))
    takes(root, "100")
    done = install(*words, umask=0o077)  # as a careful root has it
    assert done.returncode == 0, done.stdout + done.stderr
    closed = [one for one in (root / "opt").rglob("*") if not one.stat().st_mode & 0o004]
    assert not closed, "the agent's user cannot read it"
    assert (root / "etc/holdfast/reset.d").stat().st_mode & 0o777 == 0o755
    script = root / "opt/holdfast/venv/bin/holdfast-root"
    link = root / "opt/holdfast/venv"
    assert str(link.readlink()) == "slots/a"
    assert "/opt/holdfast/slots/a/bin/python" in script.read_text(), "whichever is linked later"
    assert str(root) not in script.read_text()
    assert str(root) not in (link / "pyvenv.cfg").read_text()
    assert Slots(link.parent, "a").there("a") == Slot("0.1.0")
    for name in UNITS:
        shipped = ROOT / "provisioning" / "systemd" / name
        assert (root / "usr/lib/systemd/system" / name).read_text() == shipped.read_text()
    assert (root / "usr/lib/udev/rules.d/60-holdfast.rules").exists()
    for name in ("uncounted.sh", "slots.sh"):
        assert os.access(root / "usr/lib/holdfast" / name, os.X_OK)
    keys = root / "etc/holdfast/update.keys"
    keys.write_text("a key of mine\n")
    assert (root / "opt/holdfast/models/speech").is_dir()
    assert files(root / "etc/systemd") == DROP_IN, "nothing is enabled that was not asked for"
    drop_in = root / "etc/systemd/system.conf.d/holdfast.conf"
    rows = drop_in.read_text().splitlines()
    assert {"[Manager]", "RuntimeWatchdogSec=60", "RebootWatchdogSec=100"} <= set(rows)
    config = root / "etc/holdfast/config.yaml"
    assert config.stat().st_mode & 0o777 == 0o640
    assert config_file.load(config).watchdog.root_socket == "/run/holdfast-root.sock"
    if shutil.which("systemd-sysusers") and os.geteuid() == 0:
        assert "holdfast:x:" in (root / "etc/passwd").read_text()

    config.write_text("link: {ack_from: broker}\n")
    (root / "var/lib/holdfast/holdfast.db").write_text("records")
    before = files(root)
    (root / "opt/holdfast/slots/trial").write_text("b a 1 boot 1\n")
    (root / "var/lib/holdfast/uncounted").write_text("60\n")
    wheels(made, "second")
    done = install(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stays as it is" in done.stdout
    assert config.read_text() == "link: {ack_from: broker}\n"
    beside = {one.replace("/slots/a", "/slots/b", 1) for one in before}
    assert files(root) == before | beside, "the former version is left, to go back to"
    assert keys.read_text() == "a key of mine\n"
    assert str(link.readlink()) == "slots/b"
    for slot, says in (("a", "first"), ("b", "second")):
        found = root.glob(f"opt/holdfast/slots/{slot}/lib/*/site-packages/fake_holdfast.py")
        assert says in next(found).read_text(), "of one version number, and newer"

    bounded = drop_in.read_text()
    drop_in.write_text(f"{bounded}LogLevel=debug\n")
    done = install("uninstall", "--root", str(root), "--dry-run")
    assert str(drop_in) not in done.stdout, "it is not as it was made: somebody's own"
    drop_in.write_text(bounded)
    done = install("uninstall", "--root", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left, for they are yours" in done.stdout
    assert not (root / "opt/holdfast").exists()
    assert not any((root / "usr/lib/systemd/system").iterdir())
    assert not drop_in.exists()
    assert not (root / "usr/lib/holdfast").exists()
    assert (root / "var/lib/holdfast/holdfast.db").read_text() == "records"
    assert config.exists()


FLEET_UNITS = ("holdfast-fleet-ingest.service", "holdfast-fleet-control.service")


def test_the_cloud_side_is_installed_beside_an_agent_and_removed(tmp_path: Path) -> None:
    root, made = image(tmp_path / "image"), wheels(tmp_path / "wheels", "first")
    python = tmp_path / "python"
    python.write_text(PLAYED)
    python.chmod(0o755)
    words = ("--root", str(root), "--wheels", str(made))
    assert install(*words, python=python).returncode == 0
    agents = files(root)
    done = install("--fleet", *words, "--enable", umask=0o077, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str((root / "opt/holdfast-fleet/venv").readlink()) == "slots/a"
    assert (root / "opt/holdfast-fleet/docs/fleet.md").exists()
    enabled = root / "etc/systemd/system/multi-user.target.wants"
    for name in FLEET_UNITS:
        shipped = (ROOT / "provisioning" / "systemd" / name).read_text()
        assert (root / "usr/lib/systemd/system" / name).read_text() == shipped
        assert (enabled / name).is_symlink()
    told = root / "etc/holdfast-fleet/environment"
    assert (told.stat().st_mode & 0o777, told.parent.stat().st_mode & 0o777) == (0o640, 0o750)
    if shutil.which("systemd-sysusers") and os.geteuid() == 0:
        assert told.stat().st_gid == told.parent.stat().st_gid != 0, "its user may read both"
    told.write_text("HOLDFAST_FLEET_INGEST=--broker mqtts://mine\n")

    done = install("--fleet", *words, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told.read_text() == "HOLDFAST_FLEET_INGEST=--broker mqtts://mine\n"
    assert str((root / "opt/holdfast-fleet/venv").readlink()) == "slots/b"
    done = install("uninstall", "--fleet", "--root", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert told.exists()
    left = {one for one in files(root) - agents if "fleet" in one}
    assert left == {"etc/holdfast-fleet", "etc/holdfast-fleet/environment"}
    assert agents <= files(root), "the agent is as it was"


# Makes environments that are none: what is tested is where they are put.
PLAYED = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/bin/holdfast" "$3/pyvenv.cfg"
        chmod +x "$3/bin/holdfast" ;;
    "-I -c"*) echo 0.1.0 ;;
esac
"""


def test_what_still_runs_is_not_removed(tmp_path: Path) -> None:
    """Installed, and not started yet; then installed once more: its slot is the one beside."""
    root, made = image(tmp_path / "an image"), wheels(tmp_path / "wheels", "first")
    python = tmp_path / "python"
    python.write_text(PLAYED)
    python.chmod(0o755)
    words = ("--root", str(root), "--wheels", str(made))
    assert install(*words, python=python).returncode == 0
    slot = root / "opt/holdfast/slots/a"
    (slot / "bin/python").unlink()
    (slot / "bin/python").symlink_to(sys.executable)
    runs = [slot / "bin/python", "-c", "print('runs', flush=True); input()"]
    with subprocess.Popen(runs, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline()
        done = install(*words, python=python)
        assert done.returncode == 0, "it goes into the other one"
        before = files(root)
        for more in ([], ["--dry-run"]):
            done = install(*words, *more, python=python)
            assert done.returncode == 1, done.stdout
            assert f"what runs is from {slot} (process {process.pid})" in done.stderr
            assert "systemctl restart" in done.stderr
        assert files(root) == before
        assert str((root / "opt/holdfast/venv").readlink()) == "slots/b", "it can be started"
        process.stdin.close()
        assert process.wait(DEADLINE_S) != 0
    done = install(*words, python=python)
    assert done.returncode == 0, done.stderr
    assert str((root / "opt/holdfast/venv").readlink()) == "slots/a"


def test_an_environment_as_it_once_was_becomes_a_link(tmp_path: Path) -> None:
    root, made = image(tmp_path / "image"), wheels(tmp_path / "wheels", "new")
    python = tmp_path / "python"
    python.write_text(PLAYED)
    python.chmod(0o755)
    former = root / "opt/holdfast/venv"
    (former / "bin").mkdir(parents=True)
    (former / "bin" / "holdfast").write_text("former")
    done = install("--root", str(root), "--wheels", str(made), python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(former.readlink()) == "slots/a"
    there = {one.name for one in former.parent.iterdir()}
    assert there == {"docs", "models", "slots", "venv"}

    # The power goes where neither is there: the next start mends it.
    former.unlink()
    slots = ["sh", str(root / "usr/lib/holdfast/slots.sh"), str(former.parent), "start"]
    subprocess.run(slots, check=True, timeout=DEADLINE_S)
    assert str(former.readlink()) == "slots/a"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("etc/systemd/system.conf", "[Manager]\n#RuntimeWatchdogSec=off\n", ""),
        ("etc/systemd/system.conf", "[Manager]\nRuntimeWatchdogSec=30\n", "RuntimeWatchdogSec"),
        ("usr/lib/systemd/system.conf.d/l4t.conf", "RuntimeWatchdogSec = 2min\n", "l4t.conf has"),
        ("etc/systemd/system.conf.d/holdfast.conf", "[Manager]\n", "holdfast.conf is there"),
        ("etc/holdfast/config.yaml", "watchdog: {owner: agent}\n", "not systemd"),
        ("etc/holdfast/config.yaml", "watchdog:\n  owner: systemd  # agent\n", ""),
    ],
)
def test_who_feeds_the_machines_own_watchdog_already_goes_on(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    root, made = image(tmp_path / "image"), wheels(tmp_path / "wheels", "first")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    drop_in = root / "etc/systemd/system.conf.d/holdfast.conf"
    # It is copied as all other files are: what would be done is enough to know.
    done = install("--root", str(root), "--wheels", str(made), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert (f"{drop_in}\n" in done.stdout) == (not told), done.stdout
    assert told in done.stdout
    assert (root / name).read_text() == text


@pytest.mark.parametrize(
    ("most", "told"), [("15", ["=15/", "=15/"]), ("100", ["=100/"]), ("255", []), ("0", [])]
)
def test_no_more_is_asked_of_a_driver_than_it_takes(
    tmp_path: Path, most: str, told: list[str]
) -> None:
    """An older Raspberry Pi's takes 15 s: systemd could not set 60."""
    root, made = image(tmp_path / "image"), wheels(tmp_path / "wheels", "first")
    takes(root, most)
    done = install("--root", str(root), "--wheels", str(made), "--dry-run")
    assert done.returncode == 0, done.stderr
    bounded = [row for row in done.stdout.splitlines() if "sed -i" in row]
    assert len(bounded) == len(told)
    assert all(one in row for one, row in zip(told, bounded, strict=True))


def test_every_board_takes_what_systemd_is_told_of_its_watchdog() -> None:
    """docs/watchdog.md, RuntimeWatchdogSec by board: 255 s at most; and of a Raspberry Pi's, some
    kernels keep what a division by 16 leaves, and feed it every 8 s."""
    told = configparser.ConfigParser()
    told.read(ROOT / "provisioning" / "systemd" / "holdfast-watchdog.conf")
    spans_s = [int(told["Manager"][name]) for name in ("RuntimeWatchdogSec", "RebootWatchdogSec")]
    assert spans_s == sorted(spans_s)
    assert all(one <= 255 and one % 16 > 8 for one in [*spans_s, Watchdog().timeout_s])


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
        for program in ("/opt/holdfast/venv/bin/", "/usr/lib/holdfast/"):
            text = text.replace(program, "/bin/true ")
        (tmp_path / name).write_text(text)
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
