"""The command line: what is wrong is said, with what to do; nothing is half done."""

import json
import subprocess
from pathlib import Path

import pytest

from agent.protocol import commands
from agent.protocol.signing import Key
from fleet.control import base
from tests.fleet.control.rig import document, fleet
from tests.fleet.process import FLEET
from tests.outside import DEADLINE_S, ROOT

WRONG = {
    "no device": ("send", "sync.pause"),
    "an empty tag": ("send", "sync.pause", "--tag", "nobody"),
    "no such list": ("send", "sync.pause", "--list", "/nowhere"),
    "args that are no JSON": ("send", "x", "--device", "d", "--args", "{"),
    "args that are no object": ("send", "x", "--device", "d", "--args", "[]"),
    "a name that is none": ("send", "Sync Pause", "--device", "d"),
    "a device that is none": ("send", "x", "--device", "a/b"),
    "an id that is none": ("send", "x", "--device", "d", "--id", "a b"),
    "an id that is too long": ("send", "x", "--device", "d", "--id", "a" * 57),
    "a duration without a unit": ("send", "x", "--device", "d", "--expires", "7"),
    "a duration beyond the calendar": ("send", "x", "--device", "d", "--expires", "999999999d"),
    "no such key": ("send", "x", "--device", "d", "--sign", "/nowhere"),
    "direct without a broker": ("send", "x", "--device", "d", "--direct"),
    "a broker that is none": ("send", "x", "--device", "d", "--direct", "--broker", "http://x"),
    "a folder that cannot be": ("send", "x", "--device", "d", "--files", "/proc/x"),
    "a stick that cannot be": ("send", "x", "--device", "d", "--out", "/proc/x"),
    "a wait for a stick": ("send", "x", "--device", "d", "--out", "/tmp", "--wait"),
    "no such device": ("status", "d"),
    "no such rollout": ("rollout", "show", "r-9"),
    "a rollout of nobody": ("rollout", "start", "x"),
    "steps that fall": ("rollout", "start", "x", "--device", "d", "--steps", "10,5"),
    "a share of two": ("rollout", "start", "x", "--device", "d", "--pause-at", "2"),
    "nobody at a time": ("rollout", "start", "x", "--device", "d", "--in-flight", "0"),
    "a way back that is none": (
        *("rollout", "start", "x", "--device", "d"),
        *("--rollback", "y", "--rollback-on", "never"),
    ),
    "a way back of something else": (
        *("rollout", "start", "model.install", "--device", "d", "--id", "r-1"),
        *("--rollback", "model.rollback", "--rollback-args", '{"of": "r-0"}'),
    ),
    "a twin that is no object": ("twin", "set", "[]", "--device", "d"),
    "a twin that is too large": ("twin", "set", json.dumps({"x": "y" * 300_000}), "--device", "d"),
    "a tag that is none": ("tag", "add", "a/b", "d"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    async with base.open(url):
        pass
    done = await fleet(*WRONG[what], "--database", url)
    assert done.returncode in (1, 78), done.stdout
    message, _, hint = done.stderr.partition("\n")
    assert message and hint, "what to do is said, too"
    listed = await document("commands", "--database", url)
    assert listed == {"commands": []}
    assert (await document("rollout", "ls", "--database", url)) == {"rollouts": []}


async def test_commands_are_written_to_files_for_other_ways(tmp_path: Path) -> None:
    key = tmp_path / "fleet.key"
    public = Key.kept(key).public
    folder = tmp_path / "out"
    some = ("--device", "d1", "--device", "d2", "--sign", str(key), "--id", "o:1")
    told = await document("send", "sync.pause", *some, "--files", str(folder))
    assert told == {"id": "o:1", "files": [f"{folder}/d1.o_1.json", f"{folder}/d2.o_1.json"]}
    order = commands.decode((folder / "d2.o_1.json").read_bytes())
    assert (order.by, order.command.device, order.command.id) == (public, "d2", "o:1")


async def test_a_list_of_devices_may_have_remarks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    listed = tmp_path / "devices"
    listed.write_text("# hall 1\nd1\n\n  d2  # the old one\nd1\n")
    some = ("--list", str(listed), "--args", f"@{tmp_path}/args", "--database", url)
    (tmp_path / "args").write_text('{"for_s": 60}')
    done = await fleet("send", "sync.pause", *some)
    assert "ordered of 2 devices" in done.stdout, done.stderr
    found = (await document("commands", "--database", url))["commands"]
    assert {one["device"] for one in found} == {"d1", "d2"}


async def test_tags_name_groups_that_are_narrowed_by_each(tmp_path: Path) -> None:
    where = ("--database", f"sqlite:///{tmp_path}/fleet.db")
    await fleet("tag", "add", "hall-1", "d1", "d2", *where)
    await fleet("tag", "add", "press", "d2", "d3", *where)
    told = await document("devices", "--tag", "hall-1", "--tag", "press", *where)
    assert [one["device"] for one in told["devices"]] == ["d2"]
    told = await document("send", "x", "--tag", "hall-1", "--tag", "press", *where)
    assert [one["device"] for one in told["commands"]] == ["d2"]
    told = await document("send", "x", "--all", *where)
    assert [one["device"] for one in told["commands"]] == ["d1", "d2", "d3"]
    await fleet("tag", "rm", "press", "d2", *where)
    assert await document("tag", "ls", *where) == {
        "tags": {"hall-1": ["d1", "d2"], "press": ["d3"]}
    }
    for command in (("devices",), ("status", "d2"), ("tag", "ls"), ("commands",)):
        done = await fleet(*command, *where)
        assert (done.returncode, "d2" in done.stdout) == (0, True), command


async def test_a_rollout_is_shown_and_steered(tmp_path: Path) -> None:
    where = ("--database", f"sqlite:///{tmp_path}/fleet.db")
    some = [f"--device=d{i}" for i in range(20)]
    started = await document("rollout", "start", "x", *some, "--id", "r-1", *where)
    assert (started["state"], started["steps"], started["members"]) == (
        "running",
        [1, 2, 10, 20],
        20,
    )
    assert (await document("rollout", "pause", "r-1", "--why", "lunch", *where))["cause"] == "lunch"
    wait = ("--wait", "--timeout", "1s")
    assert (await fleet("rollout", "show", "r-1", *wait, *where)).returncode == 12
    assert (await fleet("rollout", "resume", "r-1", *where)).returncode == 0
    assert (await fleet("rollout", "show", "r-1", *wait, *where)).returncode == 11
    done = await fleet("rollout", "abort", "r-1", "--why", "it [/b]smells", *where)
    assert "it [/b]smells" in done.stdout
    assert (await fleet("rollout", "show", "r-1", *wait, *where)).returncode == 13
    assert (await fleet("rollout", "abort", "r-1", *where)).returncode == 1
    assert "r-1" in (await fleet("rollout", "ls", *where)).stdout
    lines = (await fleet("watch", "--rollout", "r-1", "--json", *where)).stdout
    assert lines == "", "it is over, and nothing happened since"


async def test_all_commands_of_a_rollout_are_signed_where_it_is_begun(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    key = tmp_path / "fleet.key"
    public = Key.kept(key).public
    some = ("--device", "d1", "--device", "d2", "--rollback", "y", "--sign", str(key))
    done = await fleet("rollout", "start", "x", *some, "--id", "r-1", "--database", url)
    assert done.returncode == 0, done.stderr
    async with base.open(url) as database, database.begin() as one:
        rows = await one.fetch("SELECT device, id, payload FROM commands")
    orders = [(device, id_, commands.decode(payload.encode())) for device, id_, payload in rows]
    assert {(device, id_) for device, id_, _ in orders} == {
        *(("d1", "r-1"), ("d1", "r-1.back"), ("d2", "r-1"), ("d2", "r-1.back"))
    }
    for device, id_, order in orders:
        assert (order.by, order.command.device, order.command.id) == (public, device, id_)


async def test_a_rollback_is_of_what_the_rollout_brings_without_a_word(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    given = ("--rollback-args", '{"why": "it is bad"}')
    backs = {
        "config.rollback": ("r-1", given, {"why": "it is bad", "of": "r-1"}),
        "agent.rollback": ("r-2", (), {"of": "r-2"}),
        "sync.resume": ("r-3", (), {}),
    }
    for name, (id_, options, _) in backs.items():
        some = ("--device", "d", "--id", id_, "--rollback", name, *options)
        done = await fleet("rollout", "start", "x", *some, "--database", url)
        assert done.returncode == 0, done.stderr
    async with base.open(url) as database, database.begin() as one:
        rows = await one.fetch("SELECT payload FROM commands WHERE id LIKE '%.back'")
    found = [commands.decode(payload.encode()).command for (payload,) in rows]
    assert {one.name: one.args for one in found} == {
        name: args for name, (_, _, args) in backs.items()
    }


async def test_a_device_that_is_retired_or_reinstated_is_a_known_one_of_that_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    where = ("--database", url)
    await fleet("tag", "add", "hall", "d1", *where)
    monkeypatch.chdir(tmp_path)
    there = set(tmp_path.iterdir())
    for name in ("retire", "reinstate"):
        done = await fleet("devices", name, "nosuch", *where)
        assert (done.returncode, "nosuch: nothing is known" in done.stderr) == (1, True), name
        done = await fleet("devices", *where, "--json", name, "d1")
        assert done.returncode == 2, f"else another database is asked: {done.stdout}"
        assert f"--database, --json before `{name}`" in " ".join(done.stderr.split())
    assert set(tmp_path.iterdir()) == there, "nothing was made"
    monkeypatch.setenv("HOLDFAST_FLEET_DATABASE", url)
    for name in ("retire", "reinstate"):
        assert (await fleet("devices", name, "d1")).returncode == 0, "as the environment says"


def test_the_command_itself_ends_with_its_exit_code(tmp_path: Path) -> None:
    where = ("--database", f"sqlite:///{tmp_path}/none.db")
    done = subprocess.run(
        [str(FLEET), "rollout", "show", "r-1", *where],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
    )
    assert (done.returncode, "no such database" in done.stderr) == (73, True)
    assert not list(tmp_path.iterdir()), "asking made nothing"
