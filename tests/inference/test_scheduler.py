"""Calls on their way through cache, breaker, sequences, queue and process: all of it real."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from agent.errors import BusyError, LateError, NotThere, RequestError, RunError
from agent.inference.breaker import CALLS_MIN
from agent.inference.scheduler import Request
from agent.inference.sequences import STEPS_MAX, Step
from agent.inference.wire import Infer, Inferred, Tensor
from tests.inference.house import DEADLINE_S, House, error_of, running, write_all

NAMES = ("tiny", "loop", "accumulator", "sure", "picks", "replaced", "same", "tiny4")
LONG_TURNS = 1 << 40  # years


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    write_all(tmp_path)
    async with running(tmp_path, *NAMES, call_timeout_s=20.0) as found:
        yield found


def request(model: str, values: Any, dtype: str = "FP32", name: str = "x", **more: Any) -> Request:
    kind = {"FP32": np.float32, "INT64": np.int64}[dtype]
    content = np.array(values, kind)
    tensor = Tensor(name, dtype, list(content.shape), content.nbytes)
    head = msgspec.Raw(msgspec.msgpack.encode(Infer([tensor])))
    return Request(model, head, [content.tobytes()], content.nbytes, **more)


def turns(count: int, **more: Any) -> Request:
    return request("loop", [count], "INT64", "turns", **more)


def numbers(result: Any) -> list[float]:
    (one,) = msgspec.msgpack.decode(result.head, type=Inferred).outputs
    assert one.dtype == "FP32"
    return np.frombuffer(result.body, np.float32).tolist()


async def begun(house: House, calls: int = 1) -> None:
    """Until so many calls are in the process, which works."""
    async with asyncio.timeout(DEADLINE_S):
        while sum(one.calls for one in house.domain.instances) < calls:
            await asyncio.sleep(0.001)
        spent_s = psutil.Process(house.pid).cpu_times().user
        while psutil.Process(house.pid).cpu_times().user < spent_s + 0.05:
            await asyncio.sleep(0.01)


async def test_a_run_of_years_ends_at_once_and_its_process_goes_on(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(3):
            pid, answer = house.pid, house.scheduler.start(turns(LONG_TURNS))
            await begun(house)
            answer.cancel()
            assert len(numbers(await house.scheduler.infer(turns(3)))) == 1
            assert numbers(await house.scheduler.infer(request("tiny4", [[1, 2, 3, 4]]))) == [
                *(1.0, 2.0, 3.0, 4.0)
            ]
            assert house.pid == pid


async def test_a_deadline_ends_the_run_too(house: House) -> None:
    pid = house.pid
    late = house.scheduler.start(turns(LONG_TURNS, timeout_s=0.3))
    behind = house.scheduler.start(turns(3))
    assert isinstance(await error_of(late), LateError)
    async with asyncio.timeout(DEADLINE_S):
        assert len(numbers(await behind)) == 1
    assert house.pid == pid
    told = house.domain.figures.models["loop"].outcomes
    assert set(told) & {"withdrawn", "expired", "late"}, told


async def test_of_calls_in_one_message_the_one_that_is_given_up_ends_alone(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(30):  # until it is known that they are cheap, and go together
            await house.scheduler.infer(turns(1))
        others = [house.scheduler.start(turns(2)) for _ in range(2)]
        long = house.scheduler.start(turns(LONG_TURNS))
        others += [house.scheduler.start(turns(2)) for _ in range(2)]
        await begun(house)
        long.cancel()
        found = [numbers(await other) for other in others]
    assert len({tuple(one) for one in found}) == 1


async def test_a_call_whose_process_dies_is_made_again(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        long = house.scheduler.start(turns(LONG_TURNS))
        behind = [house.scheduler.start(request("tiny4", [[i] * 4])) for i in range(5)]
        await begun(house)
        os.kill(house.pid, signal.SIGKILL)
        await asyncio.sleep(0)
        long.cancel()
        assert [numbers(await one)[0] for one in behind] == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_what_is_no_onnx_model_or_not_there_is_refused(house: House) -> None:
    assert isinstance(await error_of(house.scheduler.infer(request("nothing", [1]))), NotThere)
    other = request("tiny4", [[1] * 4], version=7)
    assert isinstance(await error_of(house.scheduler.infer(other)), NotThere)
    stateful = house.scheduler.infer(request("accumulator", [[1] * 4]))
    assert isinstance(await error_of(stateful), RequestError)
    stateless = house.scheduler.infer(request("tiny4", [[1] * 4], step=Step("a", start=True)))
    assert isinstance(await error_of(stateless), RequestError)
    speech = replace(house.domain.models["tiny4"].manifest, engine="speech")
    house.domain.models["tiny4"] = replace(house.domain.models["tiny4"], manifest=speech)
    asked = house.scheduler.infer(request("tiny4", [[1] * 4]))
    assert isinstance(await error_of(asked), RequestError)
    del house.domain.models["tiny4"]
    unloaded = house.scheduler.infer(request("tiny4", [[1] * 4]))
    assert isinstance(await error_of(unloaded), NotThere)


async def test_a_known_answer_is_given_again_for_as_long_as_it_holds(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        first = await house.scheduler.infer(request("sure", [[5]]))
        again = await house.scheduler.infer(request("sure", [[5]]))
        other = await house.scheduler.infer(request("sure", [[6]]))
        await house.scheduler.infer(request("tiny4", [[1] * 4]))
        unsure = await house.scheduler.infer(request("tiny4", [[1] * 4]))
    assert (first.cached, again.cached, other.cached, unsure.cached) == (False, True, False, False)
    assert numbers(first) == numbers(again) == [5.0]
    assert numbers(other) == [6.0]
    bad = request("sure", [[1, 2]])
    for _ in range(2):
        assert isinstance(await error_of(house.scheduler.infer(bad)), RequestError)
    figures = house.domain.figures.models["sure"]
    assert (figures.cache_hits, figures.cache_misses) == (1, 4)


async def fails(house: House, model: str) -> None:
    for _ in range(CALLS_MIN):
        bad = house.scheduler.infer(request(model, [[99]], "INT64"))
        assert isinstance(await error_of(bad), RunError)


async def test_a_model_that_errs_too_often_is_left_alone(house: House) -> None:
    await fails(house, "picks")
    error = await error_of(house.scheduler.infer(request("picks", [[1]], "INT64")))
    assert isinstance(error, BusyError)
    assert 0 < error.retry_s <= 10
    assert house.domain.figures.models["picks"].outcomes["busy"] == 1
    async with asyncio.timeout(DEADLINE_S):  # the others are not
        await house.scheduler.infer(request("tiny4", [[1] * 4]))


async def test_its_fallback_answers_and_says_so(house: House) -> None:
    await fails(house, "replaced")
    async with asyncio.timeout(DEADLINE_S):
        found = await house.scheduler.infer(request("replaced", [[99]], "INT64"))
    assert found.model.startswith("same/1@")
    assert np.frombuffer(found.body, np.int64) == [99]


def step(value: float, id: str, *, start: bool = False, end: bool = False) -> Request:
    return request("accumulator", [[value] * 4], step=Step(id, start, end))


async def test_sequences_add_up_whatever_happens_between_their_steps(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        sums = dict.fromkeys("abcdefgh", 0.0)
        for i in range(12):
            if i == 5:
                os.kill(house.pid, signal.SIGKILL)
                await asyncio.sleep(0)
            if i == 6:
                await house.domain.ready.wait()
            asked = {
                id: asyncio.ensure_future(house.scheduler.infer(step(i + ord(id), id, start=not i)))
                for id in sums
            }
            for id, answer in asked.items():
                try:
                    found = numbers(await answer)
                except BusyError:  # it was not accepted, and is not in the sum
                    continue
                sums[id] += i + ord(id)
                assert found == [sums[id]] * 4
    batches = house.domain.figures.models["accumulator"].batch_calls.counts
    assert sum(batches[1:]) > 0, "steps of several sequences went together"


async def test_steps_of_one_sequence_keep_their_order(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await house.scheduler.infer(step(0, "a", start=True))
        steps = [asyncio.ensure_future(house.scheduler.infer(step(i, "a"))) for i in range(1, 20)]
        found = [numbers(await one)[0] for one in steps]
    assert found == [float(sum(range(i + 1))) for i in range(1, 20)]


async def test_an_end_and_a_new_start_while_steps_run(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        orders = [
            *(step(1, "a", start=True), step(2, "a"), step(4, "a", start=True), step(8, "a")),
            *(step(16, "a", end=True), step(32, "a"), step(64, "a", start=True), step(1, "a")),
        ]
        asked = [asyncio.ensure_future(house.scheduler.infer(one)) for one in orders]
        await asyncio.wait(asked)
        assert isinstance(asked.pop(5).exception(), NotThere), "it had ended"
        assert [numbers(one.result())[0] for one in asked] == [1, 3, 4, 12, 28, 64, 65]
        assert numbers(await house.scheduler.infer(step(1, "a")))[0] == 66, "it goes on"
        await house.scheduler.infer(step(1, "a", end=True))
    assert isinstance(await error_of(house.scheduler.infer(step(1, "a"))), NotThere)
    assert len(house.sequences) == house.sequences.used_bytes == 0


async def test_a_start_that_fails_begins_nothing(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await house.scheduler.infer(step(1, "a", start=True))
        bad = request("accumulator", [[1] * 3], step=Step("a", start=True))
        assert isinstance(await error_of(house.scheduler.infer(bad)), RequestError)
        assert isinstance(await error_of(house.scheduler.infer(step(1, "a"))), NotThere)
    assert len(house.sequences) == 0


async def test_a_step_that_fails_changes_nothing(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await house.scheduler.infer(step(1, "a", start=True))
        bad = request("accumulator", [[1] * 3], step=Step("a"))
        assert isinstance(await error_of(house.scheduler.infer(bad)), RequestError)
        mine = step(1, "a")
        head = msgspec.msgpack.decode(mine.head, type=Infer)
        asks = msgspec.Raw(msgspec.msgpack.encode(Infer(head.inputs, ["y", "state_out"])))
        error = await error_of(house.scheduler.infer(mine._replace(head=asks)))
        assert isinstance(error, RequestError)
        assert "state_out" in str(error)
        assert numbers(await house.scheduler.infer(step(2, "a"))) == [3.0] * 4


async def test_a_sequence_of_several_rows_has_a_state_for_each(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        rows = [[1] * 4, [2] * 4]
        for start in (True, False):
            asked = request("accumulator", rows, rows=2, step=Step("a", start=start))
            found = numbers(await house.scheduler.infer(asked))
    assert found == [2.0] * 4 + [4.0] * 4
    many = request("accumulator", rows, rows=1 << 26, step=Step("b", start=True))
    assert isinstance(await error_of(house.scheduler.infer(many)), RequestError)
    nothing = request("accumulator", [], rows=0, step=Step("c", start=True))
    assert "this one is empty" in str(await error_of(house.scheduler.infer(nothing)))


async def test_a_step_that_waits_for_its_turn_has_a_deadline_all_the_same(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await house.scheduler.infer(step(1, "a", start=True))
        os.kill(house.pid, signal.SIGSTOP)
        first = asyncio.ensure_future(house.scheduler.infer(step(2, "a")))
        await asyncio.sleep(0)  # it has the turn
        error = await error_of(house.scheduler.infer(step(4, "a")._replace(timeout_s=0.05)))
        assert isinstance(error, LateError)
        assert not first.done(), "it is told before the one ahead of it has ended"
        os.kill(house.pid, signal.SIGCONT)
        assert numbers(await first)[0] == 3
        assert numbers(await house.scheduler.infer(step(8, "a")))[0] == 11, "it was not made"


async def test_of_one_sequence_only_so_many_steps_wait(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await house.scheduler.infer(step(0, "a", start=True))
        asked = [asyncio.ensure_future(house.scheduler.infer(step(1, "a"))) for _ in range(70)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found[STEPS_MAX:]] == [BusyError] * (70 - STEPS_MAX)
        assert numbers(found[STEPS_MAX - 1])[0] == STEPS_MAX


async def test_the_trace_tells_of_calls_that_never_had_their_turn_too(house: House) -> None:
    async with asyncio.timeout(DEADLINE_S):
        first = asyncio.ensure_future(house.scheduler.infer(turns(LONG_TURNS)))
        await begun(house)
        error = await error_of(house.scheduler.infer(turns(1, timeout_s=0.05)))
        assert isinstance(error, LateError)
        (late,) = (one.document() for one in house.domain.figures.traces())
        assert (late.fault, late.queued_ms, late.total_ms) == ("late", None, 50.0)
        first.cancel()
        lost = asyncio.ensure_future(house.scheduler.infer(turns(LONG_TURNS)))
        while len(house.domain.figures.traces()) < 2:
            for pid in [one.pid for one in house.domain.instances if one.calls and one.pid]:
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
        await asyncio.wait([lost])
        assert [one.fault for one in house.domain.figures.traces()] == ["lost", "late"]
