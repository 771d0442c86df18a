"""Dead letters that an operator has heard once more, through the real model."""

from typing import Any

import pytest
import soundfile

from agent.errors import CallLost
from agent.forms import Keep
from agent.inference.speech import Speech
from agent.records import RATE_HZ, Range, RecordType
from tests.audio.bed import SOURCE, Bed, running, soon
from tests.audio.test_listener import (
    ALL_IS_SPEECH,
    DIED,
    SAMPLES,
    feed,
    listener,
    one_is_held,
    records,
    segments,
    speech,
)

__all__ = ["speech"]  # a fixture


def name(bed: Bed) -> tuple[str, str]:
    return bed.store.epoch, f"{SOURCE}.raw"


async def gone(bed: Bed) -> bool:
    return bed.condition("dead_letters") is None


async def poison(bed: Bed) -> int:
    """A raw record that kills its worker, between two that do not; its seq."""
    sound = soundfile.read(SAMPLES[0], dtype="int16")[0][:RATE_HZ]
    take = await feed(bed, await bed.recorder.begin("a", "1"), sound, end=False)
    seq = (await bed.balance()).produced + 1
    take = await bed.store.spool.accept(take, b"abc")  # no 16-bit samples
    await feed(bed, take, sound)
    return seq


async def test_what_kills_its_worker_again_is_a_dead_letter_again(
    bed: Bed, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, call = 0, speech._ask

    async def counting(*given: Any, **more: Any) -> Any:
        nonlocal lost
        try:
            return await call(*given, **more)
        except CallLost:
            lost += 1
            raise

    monkeypatch.setattr(speech, "_ask", counting)
    seq = await poison(bed)
    ears = listener(bed, speech)
    async with running(ears):
        await soon(lambda: bed.condition("dead_letters"), "it is given up")
        await soon(lambda: one_is_held(bed), "the rest is heard")
        lost = 0
        before = await segments(bed)
        await bed.store.decisions.retry(name(bed), [seq])
        ears.wake()
        await soon(lambda: not_retrying(bed), "it is given up again")
        assert lost >= 3, "it had its tries; a machine that is slow may lose more calls"
    assert await bed.store.spool.dead(SOURCE) == [(seq, DIED)]
    assert await segments(bed) == before


async def not_retrying(bed: Bed) -> bool:
    return await bed.store.spool.retrying(SOURCE) is None


async def good_but_dead(bed: Bed, speech: Speech, keep: Keep) -> int:
    """Two takes; the first record of the first is a dead letter although it is good; its seq."""
    sound = soundfile.read(SAMPLES[0], dtype="int16")[0][RATE_HZ : 2 * RATE_HZ]
    take = await feed(bed, await bed.recorder.begin("a", "1"), sound, end=False)
    first = (await bed.raw())[0]
    position = (await bed.store.spool.position(SOURCE)).__class__(take.id, next_seq=first[0] + 1)
    await bed.store.spool.keep(SOURCE, [], position, keep, (first[0], "the worker was sick"))
    return int(first[0])


async def test_a_dead_letter_that_can_be_heard_becomes_segments_and_is_let_go_of(
    bed: Bed, speech: Speech
) -> None:
    seq = await good_but_dead(bed, speech, "segments")
    ears = listener(bed, speech, ALL_IS_SPEECH)
    await bed.store.decisions.retry(name(bed), [seq])
    async with running(ears):
        await soon(lambda: no_dead(bed), "it was heard")
        await soon(lambda: gone(bed), "nobody speaks of it any more")
    found = [s for s in await segments(bed) if s.start < RATE_HZ // 2]
    assert [(s.start, s.samples) for s in found] == [(0, RATE_HZ // 2)], "it, whole, and once"
    balance = await bed.balance()
    assert balance.held + balance.dropped["processed"] == balance.produced


async def no_dead(bed: Bed) -> bool:
    return await bed.store.spool.dead(SOURCE) == []


async def test_one_that_is_sent_too_stays_the_uplinks(bed: Bed, speech: Speech) -> None:
    seq = await good_but_dead(bed, speech, "all")
    await bed.store.decisions.retry(name(bed))
    async with running(listener(bed, speech, ALL_IS_SPEECH, "all")):
        await soon(lambda: no_dead(bed), "it was heard")
    raw = [r.seq for r in await records(bed) if r.type == RecordType.RAW]
    assert seq in raw
    assert (await bed.balance()).dropped == {}


async def test_one_that_was_damaged_meanwhile_is_a_dead_letter_again(
    bed: Bed, speech: Speech
) -> None:
    seq = await good_but_dead(bed, speech, "segments")
    await bed.store.decisions.retry(name(bed))
    await bed.store._database.write(
        lambda c: c.execute("UPDATE records SET crc = crc + 1 WHERE seq = ?", (seq,)).rowcount
    )
    async with running(listener(bed, speech)):
        await soon(lambda: not_retrying(bed), "it was looked at")
    assert await bed.store.spool.dead(SOURCE) == [(seq, "its row in the store is damaged")]
    await bed.store.decisions.drop(name(bed), Range(seq, seq))  # so that all adds up again


async def test_a_dead_letter_that_was_dropped_is_not_spoken_of_any_more(
    bed: Bed, speech: Speech
) -> None:
    seq = await good_but_dead(bed, speech, "segments")
    ears = listener(bed, speech)
    async with running(ears):
        await soon(lambda: bed.condition("dead_letters"), "it is said")
        await bed.store.decisions.drop(name(bed), Range(seq, seq))
        ears.wake()
        await soon(lambda: gone(bed), "nobody speaks of it any more")
