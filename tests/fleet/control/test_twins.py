"""What is wanted of many devices: one of them stops nobody else, and all go in a few queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.protocol import twin
from agent.protocol.signing import Key
from agent.protocol.twin import Reported
from fleet.control import base, known, twins
from fleet.control.twins import BELIEVED_MAX, Wish
from fleet.store.database import Transaction
from tests.fleet.control.rig import asked, document, fleet

HALL = ["bad", "good-1", "good-2"]


async def says(url: str, device: str, version: int) -> None:
    """A device reports that it has this version of what is wanted."""
    said = Reported(device=device, version=1, desired_version=version, holdfast="1", state={})
    text = msgspec.json.encode(said).decode()
    await asked(url, lambda one: twins.reported(one, {device: text}, 1))


@pytest.mark.parametrize("version", [BELIEVED_MAX + 1, 2**53, 10**30])
async def test_a_device_that_says_a_version_of_nobody_stops_no_other(
    tmp_path: Path, version: int
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    where = ("--database", url)
    await fleet("tag", "add", "hall", *HALL, *where)
    await says(url, "bad", version)
    done = await fleet("twin", "set", '{"log_level": "debug"}', "--tag", "hall", *where)
    assert done.returncode == 10, done.stderr
    assert "2 devices: wanted" in done.stdout
    assert f"left out: bad: it says that it has version {version}" in done.stdout
    told = await document("twin", "set", '{"log_level": "info"}', "--tag", "hall", *where)
    assert {one["device"]: one["version"] for one in told["twins"]} == {"good-1": 2, "good-2": 2}
    assert list(told["left_out"]) == ["bad"]
    # Its device takes what is signed in the place of what is not, whatever the versions.
    key = tmp_path / "key"
    Key.kept(key)
    signed = ("--tag", "hall", "--sign", str(key), *where)
    told = await document("twin", "set", '{"log_level": "info"}', *signed)
    assert {one["device"]: one["version"] for one in told["twins"]} == {
        **{"bad": 1, "good-1": 3, "good-2": 3}
    }


async def test_what_a_restored_database_does_not_know_is_learned_from_the_device(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/fleet.db"
    await says(url, "d", BELIEVED_MAX)
    for version in (BELIEVED_MAX + 1, BELIEVED_MAX + 2):  # the second time it is our own
        found = await asked(url, lambda one: twins.desire(one, ["d"], Wish(state={}), 1))
        assert [one.version for one in found.twins] == [version]
        await says(url, "d", version)


class Counted:
    """A transaction, and how much was asked of it."""

    def __init__(self, real: Transaction) -> None:
        self._real, self.calls = real, 0

    async def fetch(self, sql: str, *values: Any) -> Sequence[Any]:
        self.calls += 1
        return await self._real.fetch(sql, *values)

    async def many(self, sql: str, rows: Any) -> None:
        self.calls += 1
        await self._real.many(sql, rows)

    execute = copy = None


async def test_all_are_asked_for_at_once(url: str) -> None:
    """Ten thousand devices are no more questions than two are."""
    calls = []
    key = Key(bytes(32))
    async with base.open(url) as database:
        for count in (2, 300):
            names = [f"d{i:03}" for i in range(count)]
            async with database.begin() as one:
                await known.tag(one, "all", names)
                counted: Any = Counted(one)
                for merge in (False, True):
                    wish = Wish(state={"log_level": "debug"}, merge=merge)
                    found = await twins.desire(counted, names, wish, 1, key)
                calls.append(counted.calls)
                assert [each.device for each in found.twins] == names
                due = await twins.due(one, 1000)
            assert len(due) == count
            read = twin.decode(due[-1][2].encode())
            assert (read.by, read.desired.state) == (key.public, {"log_level": "debug"})
    assert calls[0] == calls[1]


async def test_what_is_not_signed_takes_the_place_of_nothing_that_is(tmp_path: Path) -> None:
    """The device would pass over it, for ever."""
    url = f"sqlite:///{tmp_path}/fleet.db"
    where = ("--database", url)
    sign = ("--sign", str(tmp_path / "key"))
    Key.kept(tmp_path / "key")
    await fleet("twin", "set", '{"log_level": "debug"}', "--device", "d", *sign, *where)
    info = ("twin", "set", '{"log_level": "info"}', "--device", "d")
    for more in ((), ("--merge",)):
        done = await fleet(*info, *more, *where)
        assert done.returncode == 10, done.stdout
        assert "left out: d: what is wanted of it is signed" in done.stdout
        assert ("--sign" in done.stdout, "published" in done.stdout) == (True, False)
    told = await document(*info, "--device", "other", *where)
    assert [one["device"] for one in told["twins"]] == ["other"], "the others get theirs"
    assert (await document("twin", "get", "d", *where))["version"] == 1
    assert (await fleet(*info, *sign, *where)).returncode == 0
    assert (await document("twin", "get", "d", *where))["version"] == 2
