"""provisioning/slots.sh: which version is started, whatever that version is like, and wherever the
power goes."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from agent.host.slots.layout import Slots
from tests.outside import until
from tests.updates.rig import NEW, OLD, Device, version

# What the script calls; each of them is an instant at which it may be killed.
CALLED = ("sync", "mv", "ln", "rm")
# Counts the calls, and kills who calls it, before or behind its own work, at one of them.
KILLS = """#!/bin/sh
read -r count < {folder}/count
echo $((count + 1)) > {folder}/count
[ "$count" != {at} ] || [ {side} = behind ] || kill -9 "$PPID"
[ "$count" != {at} ] || [ {side} = behind ] || exit 1
{program} "$@"
[ "$count" != {at} ] || kill -9 "$PPID"
"""


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return ready(tmp_path)


def ready(folder: Path) -> Device:
    """With a new version in slot b."""
    folder.mkdir(exist_ok=True)
    made = Device(folder)
    version(made.opt / "slots" / "b", NEW)
    return made


def killing(folder: Path, at: int, side: str) -> str:
    """A folder for PATH."""
    folder.mkdir()
    (folder / "count").write_text("0\n")
    for name in CALLED:
        text = KILLS.format(folder=folder, at=at, side=side, program=shutil.which(name))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:"


def test_a_version_has_three_starts(device: Device) -> None:
    device.sh("start")
    assert device.linked == "a", "nothing is on trial"
    assert device.sh("switch").stdout == "slot b is on trial\n"
    for name in ("trial", "link.lock"):
        assert (device.opt / "slots" / name).stat().st_mode & 0o044 == 0o044, "the agent reads it"
    for starts in (1, 2, 3):
        device.sh("start")
        trial = device.slots().trial()
        assert trial == ("a", "b", starts)
    device.sh("start")
    assert device.linked == "a"
    ended = device.slots().ended()
    assert ended and ended[:3] == ("b", "back", "3 starts came to nothing")
    assert device.slots().trial() is None
    assert device.slots().there("b") is None, "it is not gone to again"
    assert "no version in slot b" in device.sh("switch").stderr


def test_one_that_is_confirmed_stays(device: Device) -> None:
    device.sh("switch")
    device.sh("start")
    assert "slot b is on trial" in device.sh("switch").stderr
    device.sh("confirm")
    for _ in range(5):
        device.sh("start")
    assert device.linked == "b"
    assert device.slots().trial() is None
    for word in ("confirm", "back"):
        assert "no version is on trial" in device.sh(word).stderr
    device.sh("switch")
    assert device.linked == "a", "the former one is there to go back to"


@pytest.mark.parametrize("torn", ["", "a b", "a b x boot 1", "\0\0\0", "b a 9 boot 1"])
def test_a_torn_note_of_a_trial_leaves_the_version_that_is_linked(
    device: Device, torn: str
) -> None:
    (device.opt / "slots" / "trial").write_text(torn)
    assert device.slots().trial() is None or torn.startswith("b a")
    device.sh("start")
    assert device.linked == "a"


def test_a_slot_that_is_not_whole_is_not_switched_to(device: Device) -> None:
    (device.opt / "slots" / "b" / "slot.json").unlink()
    assert device.sh("switch").returncode == 1
    assert (device.linked, device.slots().trial()) == ("a", None)


def test_an_agent_of_no_slots_starts_as_it_is(tmp_path: Path) -> None:
    made = ready(tmp_path)
    shutil.rmtree(made.opt / "slots")
    assert made.sh("start").returncode == 0


@pytest.mark.parametrize(
    ("word", "ends"),
    [
        ("switch", {("a", None), ("b", 0)}),
        ("confirm", {("b", 1), ("b", None)}),
        ("back", {("b", 1), ("a", None)}),
        ("start", {("b", 1), ("b", 2)}),
        ("last start", {("b", 3), ("a", None)}),
    ],
)
@pytest.mark.parametrize("side", ["before", "behind"])
def test_it_is_killed_at_each_of_its_steps(
    tmp_path: Path, word: str, ends: set[object], side: str
) -> None:
    """Before and behind each command that changes something: the former state, or the next; and
    what was decided is done at the next start."""
    for at in range(40):
        folder = tmp_path / str(at)
        device = ready(folder)
        if word != "switch":
            device.sh("switch")
            for _ in range(3 if word == "last start" else 1):
                device.sh("start")
        done = device.sh(word.split()[-1], path=killing(folder / "path", at, side))
        slots = device.slots()
        trial = slots.trial()
        decided = trial and slots.ended()
        assert decided or (device.linked, trial.starts if trial else None) in ends, at
        if decided:
            device.sh("start")
            assert device.slots().trial() is None
            assert device.linked == ("b" if word == "confirm" else "a")
        assert (device.opt / "venv" / "bin" / "holdfast").exists(), "a version is started"
        if done.returncode == 0:
            assert at, "it was killed once"
            return
        assert done.returncode == -signal.SIGKILL
    raise AssertionError("it never came to its end")


KEPT = ["sync slots/{0}.new", "mv -T slots/{0}.new slots/{0}", "sync slots"]
POINTED = ["ln -sfn slots/{0} venv.new", "mv -T venv.new venv", "sync ."]


def written(rows: list[str], name: str) -> list[str]:
    return [row.format(name) for row in rows]


@pytest.mark.parametrize(
    ("word", "calls"),
    [
        ("switch", ["rm -f slots/last", *written(KEPT, "trial"), *written(POINTED, "b")]),
        ("start", written(KEPT, "trial")),
        ("confirm", [*written(KEPT, "last"), "rm -f slots/trial", "sync slots"]),
        (
            "back",
            [
                *(*written(KEPT, "last"), "rm -f slots/b/slot.json", "sync slots/b"),
                *(*written(POINTED, "a"), "rm -f slots/trial", "sync slots"),
            ],
        ),
    ],
)
def test_each_step_is_on_the_disk_before_the_next(
    device: Device, tmp_path: Path, word: str, calls: list[str]
) -> None:
    """A power cut loses what was not flushed: so the order is that of the decision, its file, its
    name, and only then what follows from it."""
    if word != "switch":
        device.sh("switch")
    folder = tmp_path / "path"
    folder.mkdir()
    for name in CALLED:
        tells = f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{shutil.which(name)} "$@"\n'
        (folder / name).write_text(tells)
        (folder / name).chmod(0o755)
    assert device.sh(word, path=f"{folder}:").returncode == 0
    assert (folder / "calls").read_text().splitlines() == calls


def test_a_folder_that_became_a_link_by_halves_is_mended(device: Device) -> None:
    (device.opt / "venv").unlink()
    shutil.rmtree(device.opt / "slots" / "b")
    device.sh("start")
    assert device.runs == OLD


def played_systemctl(device: Device) -> Path:
    """It writes down what it was told; `failed` beside it: systemd has given the agent up."""
    path = device.state / "systemctl"
    path.write_text(
        f'#!/bin/sh\necho "$*" >> {device.state}/told\n'
        f"[ \"$1 $2\" != '--quiet is-failed' ] || [ -e {device.state}/failed ]\n"
    )
    path.chmod(0o755)
    return path


def told(device: Device) -> list[str]:
    place = device.state / "told"
    return place.read_text().splitlines() if place.exists() else []


def test_from_outside_a_version_that_is_never_confirmed_goes_back(device: Device) -> None:
    tell = str(played_systemctl(device))
    device.sh("switch", tell=tell)
    device.sh("start", tell=tell)
    assert told(device) == ["--no-block start holdfast-trial.service"] * 2
    device.sh("watch", "0", tell=tell)
    assert told(device)[2:] == [
        "--no-block try-restart holdfast.service",
        "--no-block try-restart holdfast-root.service",
    ]
    assert device.linked == "a"
    ended = device.slots().ended()
    assert ended and ended.why == "it was not confirmed within 0 s"


def test_from_outside_what_systemd_has_given_up_is_begun_again(device: Device) -> None:
    """A configuration that the new version does not take (78) is not tried again by the unit."""
    tell = str(played_systemctl(device))
    device.sh("switch", tell=tell)
    (device.state / "failed").touch()
    pid = os.fork()
    if pid == 0:
        device.sh("watch", "3600", tell=tell)
        os._exit(0)
    until(lambda: "--no-block restart holdfast.service" in told(device), "it is begun again")
    device.sh("back")
    until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "nothing is left to watch")


def test_who_reads_knows_which_slot_is_his(device: Device) -> None:
    made = Slots.of_this_process(str(device.opt / "slots" / "a"))
    assert made and (made.running, made.other, made.linked) == ("a", "b", "a")
    assert Slots.of_this_process(str(device.opt)) is None
    (device.opt / "venv").unlink()
    assert Slots.of_this_process(str(device.opt / "slots" / "a")) is None
