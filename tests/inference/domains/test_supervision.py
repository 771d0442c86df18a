"""Who dies, hangs or talks nonsense is replaced; who dies again and again, rests."""

import asyncio
import signal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config
from agent.clock import Clock
from agent.errors import BusyError, CallLost
from agent.inference.domains import watch, zygote
from agent.inference.domains.restarts import Restarts
from tests.inference.domains.bed import (
    CLOCK,
    DEADLINE_S,
    LONG,
    answered,
    instances,
    nothing_left,
    numbers,
    repository,
    rules,
    running,
    send,
    until,
    whole,
    within,
)
from tests.outside import ROOT

LIAR = "tests.inference.domains.liar"
WAYS = {
    "hangs up": "",
    "garbage": "makes no sense",
    "another batch": "makes no sense",
    "too many": "answers to 1 calls",
    "too short": "3 bytes of answers, 16 announced",
    "elsewhere": "answers at 64",
    "below zero": "makes no sense",
    "oversized": "beyond the bounds",
    "second hello": "it says that it has second",
    "chatter": "lost: 0",
    "stalled": "no answer within",
}


SOME = ["hangs up", "garbage", "too short", "stalled"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path)


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain takes any child that says hello."""

    async def prove(*_: object) -> None:
        pass

    monkeypatch.setattr("agent.inference.admission.Admission.prove", prove)


def lie(patch: pytest.MonkeyPatch, root: Path, way: str) -> None:
    """What the workers read that a zygote forks from now on."""
    patch.setattr(zygote, "ZYGOTE", [one for one in zygote.ZYGOTE if one != "-P"])
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("LIE", way)
    patch.setenv("LIAR", str(root / "marker"))


@pytest.mark.usefixtures("unproved")
@pytest.mark.parametrize("way", WAYS if LONG else SOME)
async def test_who_talks_nonsense_is_replaced_and_costs_no_call(
    root: Path, monkeypatch: pytest.MonkeyPatch, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    lie(monkeypatch, root, way)
    settings = rules("first", call_timeout_s=1.0, batch_max=64)
    with nothing_left():
        async with running(root, worker=LIAR, one=settings) as domains:
            one = domains.named("one")
            works = [numbers("first", float(i), floats=1 << 13) for i in range(40)]
            if way != "stalled":  # there the socket is full, with the rest of a batch behind it
                works = [numbers("first", 7.0)]
            for work in works:
                one.submit(work)
            for work in works:
                await within(work.done)
                assert work.done.result().body == work.body[0]
    assert WAYS[way] in caplog.text


@pytest.mark.parametrize("way", ["other models", "silence"])
async def test_who_introduces_itself_wrongly_never_serves(
    root: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lie(monkeypatch, root, way)
    with nothing_left():
        settings = rules("first", start_timeout_s=5.0)
        async with running(root, worker=LIAR, one=settings) as domains:
            await answered(domains.named("one"), numbers("first", 1.0))
            assert domains.named("one").restarts == 1


async def test_a_spare_serves_at_once_and_the_line_fills_up(root: Path) -> None:
    settings = rules("first", instances={"min": 1, "max": 1, "spare": 1})
    with nothing_left():
        async with running(root, one=settings) as domains:
            one = domains.named("one")
            await until(lambda: len(one.instances) == 2, "the spare is there")
            serving, spare = one.instances
            works = [numbers("first", 1.0) for _ in range(8)]
            for work in works:
                one.submit(work)
            send(serving, signal.SIGKILL)
            for work in works:
                await within(work.done)
            await until(lambda: serving not in one.instances, "it is gone")
            assert one.instances[0] is spare
            assert one.ready.is_set()
            await until(lambda: len(one.instances) == 2, "there is a spare again")


async def test_a_spare_that_hangs_is_found_before_it_is_needed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PING_S", 0.05)
    settings = rules("first", instances={"min": 1, "max": 1, "spare": 1}, call_timeout_s=0.5)
    with nothing_left():
        async with running(root, one=settings) as domains:
            one = domains.named("one")
            await until(lambda: len(one.instances) == 2, "the spare is there")
            serving, spare = one.instances
            send(spare, signal.SIGSTOP)
            await until(lambda: spare not in one.instances, "it is found out")
            await until(lambda: len(one.instances) == 2, "there is a spare again")
            await answered(one, numbers("first", 1.0))
            cause = one._pools.cause
            assert "no answer within 0.5 s" in cause or not cause
            assert one.instances[0] is serving or one.restarts > 1


async def test_who_gets_no_processor_is_not_taken_for_hung(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DOUBT_S", 0.01)
    asked = list[float]()

    def waited_s(_: zygote.Child) -> float:
        asked.append(CLOCK.monotonic())
        return asked[-1]

    with nothing_left():
        async with running(root, one=rules("first", call_timeout_s=0.2)) as domains:
            one, work = domains.named("one"), numbers("first", 1.0)
            starved = one.instances[0]
            with monkeypatch.context() as busy:
                busy.setattr(zygote.Child, "waited_s", waited_s)
                starved._watch._waited_s = CLOCK.monotonic()
                send(starved, signal.SIGSTOP)
                one.submit(work)
                await until(lambda: len(asked) > 10, "it was looked at often")
                assert one.instances == [starved]
            await within(work.done)  # by another: now it counts as hung
            assert starved not in one.instances


@pytest.mark.parametrize("once", [True, False])
async def test_a_call_is_made_again_once_unless_it_must_not(root: Path, once: bool) -> None:
    with nothing_left():
        async with running(root, one=rules("loop")) as domains:
            one = domains.named("one")
            work, behind = whole("loop", "turns", 1 << 40, once=once), whole("loop", "turns", 1)
            behind.once = True
            # Only what is known to be cheap is sent ahead.
            await answered(one, whole("loop", "turns", 1))
            one.submit(work)
            await until(lambda: work.holder, "under way")
            one.submit(behind)
            await until(lambda: behind.holder, "behind it, in the same worker")
            for death in range(1 if once else 2):
                await until(lambda: work.holder and work.tries == death, "under way")  # noqa: B023
                await until(lambda: instances(one)[0].flights, "in its worker")
                send(instances(one)[0], signal.SIGKILL)
                await until(lambda: work.tries == death + 1, "it is dead")  # noqa: B023
            with pytest.raises(CallLost, match="signal SIGKILL"):
                await asyncio.wait_for(work.done, DEADLINE_S)
            await within(behind.done)  # no worker ever began it


async def test_who_waits_behind_what_kills_its_worker_pays_nothing(root: Path) -> None:
    """Two calls of one message lose their worker; one kills the next one too, the other lives."""
    with nothing_left():
        async with running(root, one=rules("loop")) as domains:
            one = domains.named("one")
            await answered(one, whole("loop", "turns", 1))  # what it costs is known: it is cheap
            work, other = whole("loop", "turns", 1 << 40), whole("loop", "turns", 1)
            for each in (work, other):
                one.submit(each)
            for _ in range(2):
                await until(lambda: work.holder and instances(one)[0].flights, "under way")
                assert work.tries == 0 or len(instances(one)[0].flights) == 1
                tries = work.tries
                send(instances(one)[0], signal.SIGKILL)
                await until(lambda: work.tries > tries, "it is dead")  # noqa: B023
            with pytest.raises(CallLost):
                await work.done
            await within(other.done)


async def test_who_dies_again_and_again_rests_and_a_restart_pardons(root: Path) -> None:
    settings = rules("first", quarantine_after=3, quarantine_s=3000.0, restart_s_min=0.01)
    with nothing_left():
        async with running(root, one=settings) as domains:
            one = domains.named("one")
            waiting = numbers("first", 1.0)
            for death in range(3):
                await until(one.ready.is_set, "it serves")
                if death == 2:
                    send(one.instances[0], signal.SIGSTOP)
                    one.submit(waiting)
                    one.submit(numbers("first", 2.0))
                send(one.instances[0], signal.SIGKILL)
                await until(lambda: not one.ready.is_set(), "it is down")
            await until(lambda: one.quarantined, "it rests")
            with pytest.raises(BusyError, match="it rests") as refused:
                await asyncio.wait_for(waiting.done, DEADLINE_S)
            assert 2000 < refused.value.retry_s <= 3000
            with pytest.raises(BusyError, match="after so many deaths it rests") as refused:
                one.submit(numbers("first", 1.0))
            assert 2000 < refused.value.retry_s <= 3000
            one.restart()
            await until(one.ready.is_set, "it serves")
            await answered(one, numbers("first", 1.0))


async def test_a_quarantine_ends(root: Path) -> None:
    settings = rules("first", quarantine_after=2, quarantine_s=0.2)
    with nothing_left():
        async with running(root, one=settings) as domains:
            one = domains.named("one")
            for _ in range(2):
                await until(one.ready.is_set, "it serves")
                send(one.instances[0], signal.SIGKILL)
                await until(lambda: not one.ready.is_set(), "it is down")
            await until(one.ready.is_set, "it serves again")


async def test_a_restart_pardons_what_could_never_start(root: Path) -> None:
    model = root / "first/1/model.yaml"
    text = model.read_text()
    model.write_text(text.replace("first", "fist"))
    settings = rules("first", restart_s_min=3000.0, restart_s_max=3000.0)
    with nothing_left():
        async with running(root, wait=False, one=settings) as domains:
            one = domains.named("one")
            await until(lambda: "says fist" in one.cause, "it failed")
            model.write_text(text)
            one.restart()
            await until(one.ready.is_set, "it serves")


class Fake(Clock):
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


RULES = msgspec.convert(
    {
        "models": ["m"],
        **{"restart_s_min": 0.5, "restart_s_max": 8.0},
        **{"quarantine_after": 4, "quarantine_window_s": 60.0, "quarantine_s": 100.0},
    },
    config.Domain,
)
STEPS = st.lists(
    st.one_of(
        st.floats(0, 40).map(lambda s: ("pass", s)),
        st.just(("die", 0.0)),
        st.just(("succeed", 0.0)),
        st.just(("pardon", 0.0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_pauses_double_until_a_success_and_many_deaths_make_a_rest(
    steps: list[tuple[str, float]],
) -> None:
    clock = Fake()
    restarts = Restarts(RULES, clock)
    deaths: list[float] = []
    expected_s, until_s = 0.5, 0.0
    for step, seconds in steps:
        match step:
            case "pass":
                clock.now_s += seconds
            case "succeed":
                restarts.succeeded()
                expected_s = 0.5
            case "pardon":
                restarts.pardon()
                deaths, expected_s, until_s = [], 0.5, 0.0
            case "die":
                pause_s = restarts.died()
                if clock.now_s < until_s:
                    assert pause_s == pytest.approx(until_s - clock.now_s)
                    continue
                deaths = [at for at in [*deaths, clock.now_s] if at >= clock.now_s - 60.0]
                if len(deaths) == 4:
                    assert pause_s == 100.0
                    deaths, expected_s, until_s = [], 0.5, clock.now_s + 100.0
                else:
                    assert pause_s == expected_s
                    expected_s = min(8.0, 2 * expected_s)
        assert restarts.quarantined == (clock.now_s < until_s)
