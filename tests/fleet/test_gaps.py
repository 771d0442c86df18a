"""What is missing, and whose ledger does not fit: by the Cloud, and by the command."""

import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.errors import NotThere
from agent.protocol.presence import Heartbeat, Presence
from agent.records import Balance
from fleet.store import database
from fleet.store.cloud import Cloud
from fleet.store.gaps import Census, Difference
from tests.fleet.process import FLEET
from tests.fleet.sender import Sender
from tests.outside import DEADLINE_S

PRESS, LATHE = Sender("press-7"), Sender("lathe-2")


async def note_presence(cloud: Cloud, presence: Presence) -> None:
    await cloud.note([presence], {})


async def note_heartbeat(cloud: Cloud, heartbeat: Heartbeat) -> None:
    await cloud.note([], {heartbeat.device: heartbeat})


@pytest.fixture
async def cloud(url: str) -> AsyncIterator[Cloud]:
    async with Cloud(database.open(url)) as opened:
        yield opened


def fleet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(FLEET), *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


async def test_gaps_are_the_ranges_below_what_is_known(cloud: Cloud) -> None:
    await cloud.store([PRESS.batch([1, 2, 5, 6, 9], [(7, 7, "full")]), LATHE.batch([3])])
    found = await cloud.gaps()
    asked = [(gap.device, gap.first, gap.last) for gap in found.gaps]
    assert asked == [("lathe-2", 1, 2), ("press-7", 3, 4), ("press-7", 8, 8)]
    since = found.gaps[1].since_us
    await cloud.store([PRESS.batch([10, 12])])
    of_one = await cloud.gaps("press-7")
    assert [(gap.first, gap.last) for gap in of_one.gaps] == [(3, 4), (8, 8), (11, 11)]
    assert of_one.gaps_total == 3
    assert of_one.gaps[0].since_us == since < of_one.gaps[2].since_us
    assert await cloud.census() == Census({"online": 0, "offline": 0, "unknown": 2}, 4, 6)
    await cloud.store([PRESS.batch([3, 4, 8, 11]), LATHE.batch([1, 2])])
    assert (await cloud.gaps()).gaps == []


async def test_a_record_without_its_blob_is_a_gap(cloud: Cloud) -> None:
    await cloud.store([PRESS.batch([1], blob_bytes=9), PRESS.batch([2])])
    assert [(gap.first, gap.last) for gap in (await cloud.gaps()).gaps] == [(1, 1)]


async def test_a_ledger_that_does_not_fit_is_told(cloud: Cloud) -> None:
    await cloud.store([PRESS.batch([1, 2, 4], [(5, 6, "full")])])
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(8, 3, 3, {"full": 2})))
    assert (await cloud.gaps()).differences == []
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(10, 5, 3, {"full": 2})))
    (found,) = (await cloud.gaps("press-7")).differences
    expected = Difference("press-7", "e1", "a.segments", 10, 5, 3, dropped=2, told=2, stored=3)
    assert found == expected
    assert (found.lost, found.unexplained) == (2, 0)
    await note_presence(cloud, LATHE.presence())
    assert (await cloud.gaps("lathe-2")).differences == []
    with pytest.raises(NotThere):
        await cloud.gaps("lathe-3")
    await cloud.store([PRESS.batch([3, 7])])
    assert (await cloud.gaps()).differences == []
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(11, 5, 3, {"full": 2})))
    (found,) = (await cloud.gaps()).differences
    assert (found.lost, found.unexplained) == (0, 1), "its own ledger does not balance"


async def test_what_a_device_dropped_and_never_told_is_no_difference(cloud: Cloud) -> None:
    """Raw audio that became segments: nothing of that stream is ever sent."""
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(71, 0, 4, {"processed": 67})))
    assert (await cloud.gaps()).differences == []


async def test_nonsense_of_one_device_is_no_end_of_the_question(cloud: Cloud) -> None:
    """Numbers that were stored before they were bounded."""
    await cloud.store([PRESS.batch([1, 2, 4])])
    await cloud.store([Sender("bad", stream=f"{name}.x").batch([1, 3, 5]) for name in "abc"])
    bad = "stream IN (SELECT id FROM streams WHERE name <> 'a.segments')"
    async with cloud.database.begin() as transaction:
        for change in (
            f"DELETE FROM spans WHERE first = 3 AND {bad}",
            f"UPDATE spans SET first = {2**62}, last = {2**63 - 1} WHERE {bad}",
            f"INSERT INTO spans SELECT id, {2**61}, {2**62 - 2}, 1 FROM streams WHERE name = 'a.x'",
            f"INSERT INTO spans SELECT id, 3, {2**61 - 2}, 1 FROM streams WHERE name = 'a.x'",
            f"UPDATE streams SET said_produced = 1, said_delivered = {2**62}, "
            f"said_held = {2**62}, said_dropped = {2**62} WHERE name <> 'a.segments'",
        ):
            await transaction.execute(change)
    assert [gap.first for gap in (await cloud.gaps("press-7")).gaps] == [3]
    everybody = await cloud.gaps()
    assert [gap.first for gap in everybody.gaps if gap.device == "press-7"] == [3]
    assert {one.device for one in everybody.differences} == {"bad"}
    census = await cloud.census()
    assert census.gaps == 6 and census.missing >= 2**63


async def test_devices_are_listed_as_they_say_they_are(cloud: Cloud) -> None:
    await note_presence(cloud, PRESS.presence())
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(1, 0, 1, {}), "degraded"))
    await cloud.store([LATHE.batch([1, 2, 4])])
    lathe, press = await cloud.devices()
    assert (lathe.device, lathe.online, lathe.status, lathe.records, lathe.gaps) == (
        *("lathe-2", None, None, 3, 1),
    )
    assert (press.device, press.online, press.status, press.records) == (
        *("press-7", True, "degraded", 0),
    )
    await note_presence(cloud, PRESS.presence(online=False))
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(1, 0, 1, {})))
    assert (await cloud.devices())[1].online is False, "it was sent before the device went"
    async with cloud.database.begin() as transaction:  # as if that were long ago
        await transaction.execute("UPDATE devices SET presence_us = presence_us - 130000000")
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(1, 0, 1, {})))
    assert (await cloud.devices())[1].online is True, "its presence was missed"


async def test_the_command_shows_it(cloud: Cloud, url: str) -> None:
    """While another process has the database."""
    await cloud.store([PRESS.batch([1, 4])])
    await note_presence(cloud, PRESS.presence())
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(4, 2, 2, {})))
    listed = fleet("devices", "--database", url, "--json")
    assert json.loads(listed.stdout)["devices"][0]["records"] == 2
    assert "press-7" in fleet("devices", "--database", url).stdout
    assert fleet("gaps", "--database", url).returncode == 0
    await note_heartbeat(cloud, PRESS.heartbeat(Balance(4, 3, 1, {})))
    found = fleet("gaps", "--database", url, "--json", "--device", "press-7")
    document: dict[str, Any] = json.loads(found.stdout)
    assert [(gap["first"], gap["last"]) for gap in document["gaps"]] == [(2, 3)]
    assert [one["lost"] for one in document["differences"]] == [1]
    assert found.returncode == 6, "what the device counts as delivered is not there"
    nobody = fleet("gaps", "--database", url, "--device", "press-8")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "press-8: nothing ever came" in nobody.stderr
    shown = fleet("gaps", "--database", url)
    assert "press-7" in shown.stdout and "do not fit" in shown.stdout
