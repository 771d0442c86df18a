"""Results over a real Mosquitto: what nobody reads costs little, what is asked is told."""

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.commands import runs
from agent.commands.verb import Call, NoArgs, again
from agent.protocol.commands import Result
from agent.store.journal import End
from agent.store.linkstate import Orders as Ordered
from agent.sync import readers
from agent.sync.budget.pace import OVERHEAD_BYTES
from agent.sync.mqtt.connection import Connection
from agent.sync.mqtt.reasons import NOBODY
from agent.sync.results import Results
from tests.commands.rig import Effects
from tests.outside import Mosquitto
from tests.sync.controller import ROOT, Controller
from tests.sync.rig import Rig, eventually
from tests.sync.test_orders import commanded, none_untold


class Sent:
    """What goes out over the link."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.answers: list[asyncio.Future[int]] = []  # the broker's word on each

    def told(self) -> list[Result]:
        return [msgspec.json.decode(one, type=Result) for one in self.payloads]

    def ends(self) -> Counter[str]:
        """How often the end of each command was told."""
        return Counter(one.id for one in self.told() if one.ended)

    def unread(self) -> bool:
        """Whether something was told, and nobody read any of it."""
        over = len(self.answers) == len(self.payloads) and all(one.done() for one in self.answers)
        return bool(over and self.answers) and {one.result() for one in self.answers} == {NOBODY}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What goes to the topic of results."""
    found, publish = Sent(), Connection.publish

    async def spied(self: Connection, topic: str, payload: bytes, **more: Any) -> Any:
        if topic == f"{ROOT}/result":
            found.payloads.append(payload)
        answer = await publish(self, topic, payload, **more)
        if topic == f"{ROOT}/result":
            found.answers.append(answer)
        return answer

    monkeypatch.setattr(Connection, "publish", spied)
    return found


async def test_what_nobody_reads_is_told_once_and_then_one_of_it_each_round(
    tmp_path: Path, broker: Mosquitto, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, each = Rig(tmp_path, broker.url), [f"n{n}" for n in range(12)]
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            await doors.order("first")
            await eventually(lambda: sent.ends()["first"], "it is told, and maybe its first round")
            for name in each:
                await doors.order(name)
            await eventually(lambda: len(sent.ends()) == 13, "each is told")
            await doors.order("last")
            await eventually(lambda: sent.ends()["last"], "and a new one")
            assert sent.ends() - Counter(["first"] * 2) == Counter([*each, "last"])
        sent.payloads.clear()
        monkeypatch.setattr(readers, "AGAIN_S", 0.02)
        rig.configure(broker.url)
        async with commanded(rig, tmp_path):
            await eventually(lambda: sent.ends().total() >= 5, "it is looked for readers")
        assert sent.ends().keys() == {"first"}


async def test_all_is_told_as_soon_as_somebody_is_there_who_reads(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, commanded(rig, tmp_path) as doors:
        for n in range(250):
            await doors.order(f"n{n}", "write" if n % 2 else "nosuch" if n % 4 else "fail")
        reads = Controller(broker.port, f"{ROOT}/result")
        reads.send({"id": "now", "name": "write"})
        await eventually(lambda: reads.ends("now"), "its own order is answered")
        await eventually(lambda: reads.ends("n249") and reads.ends("n0"), "and the others are told")
        await none_untold(rig)
        reads.stop()


async def test_an_answer_waits_for_no_pause_and_what_nobody_asked_for_does(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig = Rig(tmp_path, broker.url, rate_bytes_per_s_max=20_000)
    reads = Controller(broker.port, f"{ROOT}/result")
    async with rig.store, commanded(rig, tmp_path) as doors:
        rig.pace.order(Ordered(math.inf))
        for n in range(3):
            await doors.order(f"n{n}")
        reads.send({"id": "asked", "name": "write"})
        reads.send({"id": "refused", "name": "nosuch"})
        await eventually(lambda: reads.ends("asked") and reads.ends("refused"), "both are told")
        assert sent.ends().keys() == {"asked", "refused"}
        assert rig.pace.quota.day.used_bytes > sum(map(len, sent.payloads)) + 2 * OVERHEAD_BYTES
        rig.pace.order(Ordered())
        await eventually(lambda: all(reads.ends(f"n{n}") for n in range(3)), "the others go on")
        await none_untold(rig)
    reads.stop()


async def test_an_answer_to_an_order_of_before_a_restart_waits_for_no_pause(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    gives = Controller(broker.port)
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            await doors.order("n0")
            for name in ("before", "after"):
                gives.send({"id": name, "name": "wait"})
            while len(await rig.store.journal.open()) < 2:
                await asyncio.sleep(0.02)
        first = (await rig.store.journal.open())[0]
        await rig.store.journal.end(first.number, End(state="succeeded"))
        reads = Controller(broker.port, f"{ROOT}/result")
        rig.configure(broker.url)
        rig.pace.order(Ordered(math.inf))
        async with commanded(rig, tmp_path) as doors:
            await eventually(lambda: reads.ends("before"), "what ended meanwhile is told")
            doors.gate.set()
            await eventually(lambda: reads.ends("after"), "and what ends now")
            assert not reads.ends("n0")
        reads.stop()
    gives.stop()


async def test_nothing_that_nobody_asked_for_goes_above_the_quota_and_all_of_it_is_counted(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig = Rig(tmp_path, broker.url, quota_bytes_per_day=1 << 20)
    reads = Controller(broker.port, f"{ROOT}/result")
    async with rig.store, commanded(rig, tmp_path) as doors:
        before = rig.pace.sent_bytes
        await doors.order("first")
        await eventually(lambda: sent.ends()["first"], "there is some left")
        counted = len(sent.payloads) * OVERHEAD_BYTES + sum(map(len, sent.payloads))
        assert rig.pace.sent_bytes - before >= counted
        rig.pace.quota.spend(1 << 20)
        await doors.order("second")
        reads.send({"id": "asked", "name": "write"})
        await eventually(lambda: reads.ends("asked"), "who asked is answered")
        assert not sent.ends()["second"]
    reads.stop()


async def test_what_is_wanted_at_its_own_place_is_told_there_though_nobody_reads_results(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    reads = Controller(broker.port, "answers/#")
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            await doors.order("n0")
            for n in range(3):
                reads.send({"id": f"w{n}", "name": "wait"}, (f"answers/{n}", b""))
            while len(await rig.store.journal.open()) < 3:
                await asyncio.sleep(0.02)
        for one in await rig.store.journal.open():  # as they do while the link is away
            await rig.store.journal.end(one.number, End(state="succeeded"))
        rig.configure(broker.url)
        async with commanded(rig, tmp_path):
            await eventually(lambda: all(reads.ends(f"w{n}") for n in range(3)), "told there")
    reads.stop()


async def test_old_answers_wait_for_no_pause_though_an_end_of_another_door_does(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig, old = Rig(tmp_path, broker.url), [f"old{n}" for n in range(3)]
    gives = Controller(broker.port)  # and reads nothing
    async with rig.store, commanded(rig, tmp_path) as doors:
        rig.pace.order(Ordered(math.inf))
        await doors.order("others")
        for name in old:
            gives.send({"id": name, "name": "write"})
        await eventually(lambda: sent.ends().keys() == {*old} and sent.unread(), "told, to nobody")
        reads = Controller(broker.port, f"{ROOT}/result")
        reads.send({"id": "now", "name": "write"})
        await eventually(lambda: reads.ends("now"), "its own order is answered")
        await eventually(lambda: all(map(reads.ends, old)), "and the old ones are told")
        assert not reads.ends("others")
        rig.pace.order(Ordered())
        await eventually(lambda: reads.ends("others"), "the pause is over")
        await none_untold(rig)
        assert sent.ends() == Counter({"others": 1, "now": 1, **dict.fromkeys(old, 2)})
        reads.stop()
    gives.stop()


async def test_what_is_left_of_a_round_is_told_after_the_pause(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig = Rig(tmp_path, broker.url)
    async with rig.store, commanded(rig, tmp_path) as doors:
        await doors.order("before")
        await eventually(sent.unread, "it is told, to nobody")
        rig.pace.order(Ordered(math.inf))
        await doors.order("others")
        reads = Controller(broker.port, f"{ROOT}/result")
        reads.send({"id": "now", "name": "write"})
        await eventually(lambda: reads.ends("now"), "it is answered")
        rig.pace.order(Ordered())
        await eventually(lambda: reads.ends("before") and reads.ends("others"), "all are told")
        reads.stop()


STEPS = 20


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `steps`, which says STEPS times how far it is."""

    async def tells(_: NoArgs, call: Call) -> None:
        for n in range(STEPS):
            await call.tell(n / STEPS, "on probation")
            await asyncio.sleep(0.01)

    verbs, more = Effects.verbs, again("steps", "Tell.", NoArgs, tells, "read")
    monkeypatch.setattr(runs, "TELL_S", 0.0)
    monkeypatch.setattr(Effects, "verbs", lambda self: [*verbs(self), more])


@pytest.mark.usefixtures("steps")
async def test_how_far_it_is_goes_where_somebody_reads_it_and_in_no_pause(
    tmp_path: Path, broker: Mosquitto, sent: Sent
) -> None:
    rig = Rig(tmp_path, broker.url)
    own = Controller(broker.port, "answers/#")  # and no result
    async with rig.store, commanded(rig, tmp_path):
        own.send({"id": "first", "name": "write"}, ("answers/0", b""))
        await eventually(lambda: own.ends("first"), "nobody reads results: that is known now")
        sent.payloads.clear()
        own.send({"id": "unread", "name": "steps"}, ("answers/1", b""))
        await eventually(lambda: own.ends("unread"), "it is answered")
        reads = Controller(broker.port, f"{ROOT}/result")
        reads.send({"id": "read", "name": "steps"})
        await eventually(lambda: reads.ends("read"), "it is told")
        rig.pace.order(Ordered(math.inf))
        reads.send({"id": "paused", "name": "steps"})
        await eventually(lambda: reads.ends("paused"), "it is told in the end")
        far = Counter(one.id for one in sent.told() if not one.ended)
        assert far["unread"] <= 1, "the first word"
        assert far["paused"] == 1
        assert far["read"] > 3
        reads.stop()
    own.stop()


async def test_who_orders_it_again_is_answered_where_he_says_then(
    tmp_path: Path, broker: Mosquitto
) -> None:
    rig = Rig(tmp_path, broker.url)
    reads = Controller(broker.port, "answers/#")

    def at(id: str) -> list[tuple[str, bytes]]:
        return [(topic, which) for topic, one, which in reads.results if one.id == id and one.ended]

    async with rig.store, commanded(rig, tmp_path) as doors:
        reads.send({"id": "done", "name": "write"}, ("answers/1", b"a"))
        await eventually(lambda: at("done") == [("answers/1", b"a")], "it is answered")
        reads.send({"id": "done", "name": "write"}, ("answers/2", b"b"))
        await eventually(lambda: len(at("done")) == 2, "and once more")
        assert at("done")[1] == ("answers/2", b"b")
        reads.send({"id": "open", "name": "wait"}, ("answers/3", b""))
        while not await rig.store.journal.open():
            await asyncio.sleep(0.02)
        reads.send({"id": "open", "name": "wait"}, ("answers/4", b""))
        reads.send({"id": "after", "name": "write"}, ("answers/5", b""))
        await eventually(lambda: at("after"), "the repeat is taken")
        doors.gate.set()
        await eventually(lambda: at("open") == [("answers/4", b"")], "there, when it has ended")
        assert doors.lines() == ["done:x", "after:x", "open:x"]
        await none_untold(rig)
    reads.stop()


async def test_what_a_broker_retains_is_answered_once(tmp_path: Path, broker: Mosquitto) -> None:
    """It comes with each connection, and nobody asks."""
    rig = Rig(tmp_path, broker.url)
    reads = Controller(broker.port, "answers/#", f"{ROOT}/result")
    async with rig.store:
        reads.send({"id": "kept", "name": "write"}, ("answers/1", b"a"), retain=True)
        async with commanded(rig, tmp_path):
            await eventually(lambda: len(reads.ends("kept")) == 2, "at both places")
            await none_untold(rig)
        for n in range(3):
            rig.configure(broker.url)
            async with commanded(rig, tmp_path) as doors:
                reads.send({"id": f"n{n}", "name": "write"})
                await eventually(lambda n=n: reads.ends(f"n{n}"), "what came behind it is told")
                assert len(reads.ends("kept")) == 2
        assert doors.lines() == ["kept:x", "n0:x", "n1:x", "n2:x"]
    reads.stop()


async def test_what_was_told_as_an_answer_is_not_told_again_in_its_round(
    tmp_path: Path, broker: Mosquitto, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, broker.url)
    each = [f"n{n}" for n in range(5)]
    async with rig.store:
        async with commanded(rig, tmp_path) as doors:
            for name in each:
                await doors.order(name)
            await eventually(lambda: len(sent.ends()) == 5, "nobody reads")
        gives, asked, answered, asking = (
            *(Controller(broker.port, "answers/#", f"{ROOT}/result"), asyncio.Event()),
            *(Results.asked, Results._tell_in_turn),
        )
        sent.payloads.clear()

        def heard(self: Results, result: Result, **more: Any) -> None:
            answered(self, result, **more)
            asked.set()

        async def interrupted(self: Results, connection: Connection, ends: Any, **more: Any) -> Any:
            if not asked.is_set():
                gives.send({"id": "n3", "name": "write"}, ("answers/1", b""))
                await asked.wait()
            return await asking(self, connection, ends, **more)

        monkeypatch.setattr(Results, "asked", heard)
        monkeypatch.setattr(Results, "_tell_in_turn", interrupted)
        rig.configure(broker.url)
        async with commanded(rig, tmp_path):
            await none_untold(rig)
        assert sent.ends() == Counter(each)
        gives.stop()
