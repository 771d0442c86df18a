"""The listener: from raw audio in a real store, through the real model, to segments."""

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from agent import config
from agent.audio.listener import Listener
from agent.audio.recordings import take_in
from agent.audio.source import Disk
from agent.config import Segments
from agent.forms import Keep
from agent.inference.admission import Admission
from agent.inference.catalog import Catalog
from agent.inference.domains.domain import Domain, Parts
from agent.inference.domains.zygote import Zygote
from agent.inference.speech import Speech
from agent.records import RATE_HZ, Range, Record, RecordType, Segment, Take
from agent.store import streams
from bench.unconfined import Unconfined
from tests.audio.bed import SOURCE, Bed, running, soon
from tests.outside import ROOT

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SAMPLES = sorted((ROOT / "samples").glob("*.flac"))
CHUNK = RATE_HZ // 2
RULES = Segments()
# Whatever the model says is speech: what comes out does not depend on the model.
ALL_IS_SPEECH = Segments(
    open_probability=0.0, close_probability=0.0, speech_s_min=0.01, length_s_max=1.0
)


@asynccontextmanager
async def hearing() -> AsyncIterator[Speech]:
    """The audio domain with the shipped model."""
    # Tests kill it often; none is about its rest.
    rules = config.Domain(models=["speech"], restart_s_min=0.01, quarantine_after=100_000)
    model = Catalog(ROOT / "models").newest("speech")
    zygote = Zygote()
    ways = (Bed.CLOCK, lambda _: None, Admission(Bed.CLOCK).prove, Unconfined(), zygote, 1)
    domain = Domain("audio", rules, Parts(lambda: {"speech": model}, *ways))
    async with zygote, domain, running(domain):
        yield Speech(domain, "speech", Bed.CLOCK)


@pytest.fixture
async def speech() -> AsyncIterator[Speech]:
    async with hearing() as found:
        yield found


def listener(
    bed: Bed, speech: Speech, rules: Segments = RULES, keep: Keep = "segments"
) -> Listener:
    return Listener(SOURCE, keep, rules, bed.store.spool, speech, bed.conditions, bed.arrived)


def sound_of(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


async def records(bed: Bed) -> list[Record]:
    """All that the uplink may send."""
    bed.store.outbox.rewind()
    found = []
    while batch := await bed.store.outbox.lease(1000, 1 << 20):
        found += batch.records
    return found


async def segments(bed: Bed) -> list[Segment]:
    """The segments in the order of their seq; their sound is what they say."""
    found = []
    for record in await records(bed):
        if record.type != RecordType.SEGMENT:
            continue
        segment = msgspec.json.decode(record.body, type=Segment)
        flac = await bed.store.outbox.blob(record, 0, record.blob_bytes)
        assert (len(flac), hashlib.sha256(flac).hexdigest()) == (segment.size_bytes, segment.sha256)
        found.append(segment)
    return found


def do_not_overlap(found: list[Segment]) -> None:
    for one, other in pairwise(found):
        assert one.take < other.take or one.start + one.samples <= other.start, (one, other)


async def all_is_heard(bed: Bed) -> bool:
    return (await bed.balance()).held == 0


async def feed(bed: Bed, take: Take, sound: np.ndarray, *, end: bool = True) -> Take:
    """Sound into the store, half a second a record."""
    for start in range(0, len(sound), CHUNK):
        take = await bed.recorder.accept(take, sound[start : start + CHUNK])
    return await bed.recorder.accept(take, sound[:0], end=True) if end else take


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
async def test_a_recording_becomes_segments(bed: Bed, speech: Speech, path: Path) -> None:
    await take_in(path, bed.recorder, Disk(SOURCE, bed.conditions))
    async with running(listener(bed, speech)):
        await soon(lambda: all_is_heard(bed), "all is heard")
    found = await segments(bed)
    assert found, "there is speech in it"
    do_not_overlap(found)
    samples = len(sound_of(path))
    for segment in found:
        assert 0 <= segment.start < segment.start + segment.samples <= samples
        assert (segment.source, segment.name) == (SOURCE, path.name)
        assert segment.id == f"{SOURCE}/{segment.take}/{segment.start}"
        assert segment.model == speech.label
        assert segment.ep == "CPUExecutionProvider"
        assert 0 < segment.speech <= 1
    ledger = await bed.store.ledger.balances()
    raw, kept = ledger[f"{SOURCE}.raw"], ledger[f"{SOURCE}.segments"]
    assert raw.dropped == {"processed": raw.produced}
    assert (kept.produced, kept.held, kept.dropped) == (len(found), len(found), {})


async def test_silence_becomes_nothing_and_is_let_go_of_on_the_way(
    bed: Bed, speech: Speech
) -> None:
    take = await bed.recorder.begin("silence", "1")
    await feed(bed, take, np.zeros(20 * RATE_HZ, np.int16), end=False)
    async with running(listener(bed, speech)):
        await soon(lambda: at_most(bed, 14), "most of the raw audio is gone before the end")
    assert await segments(bed) == []


async def at_most(bed: Bed, held: int) -> bool:
    return (await bed.balance()).held <= held


@pytest.mark.parametrize("samples", [1, 255, 15_800, 16_000, 40_001, 160_000])
async def test_where_all_is_speech_the_segments_are_the_whole_recording_and_no_more(
    bed: Bed, speech: Speech, samples: int
) -> None:
    take = await bed.recorder.begin("all", "1")
    await feed(bed, take, np.resize(sound_of(SAMPLES[0]), samples))
    async with running(listener(bed, speech, ALL_IS_SPEECH)):
        await soon(lambda: all_is_heard(bed), "all is heard")
    spans = [(s.start, s.start + s.samples) for s in await segments(bed)]
    edges = [0, *(end for _, end in spans)]
    assert [start for start, _ in spans] == edges[:-1], "a gap or an overlap"
    assert edges[-1] == samples


async def test_keep_all_sends_the_raw_audio_too(bed: Bed, speech: Speech) -> None:
    sound = sound_of(SAMPLES[0])
    async with running(listener(bed, speech, keep="all")):
        await feed(bed, await bed.recorder.begin("a", "1"), sound)
        await soon(lambda: sendable(bed, 41), "all raw records are sendable")
    found = await records(bed)
    raw = [record for record in found if record.type == RecordType.RAW]
    pcm = b"".join([await bed.store.outbox.blob(r, 0, r.blob_bytes) for r in raw])
    assert pcm == sound.tobytes()
    assert len(found) > len(raw)
    assert (await bed.balance()).dropped == {}


async def sendable(bed: Bed, raw: int) -> bool:
    return sum(record.type == RecordType.RAW for record in await records(bed)) >= raw


async def test_keep_segments_never_sends_raw_audio(bed: Bed, speech: Speech) -> None:
    take = await bed.recorder.begin("a", "1")
    await feed(bed, take, sound_of(SAMPLES[0]), end=False)
    assert await records(bed) == []
    async with running(listener(bed, speech)):
        await soon(lambda: segments(bed), "there is a segment")
    assert {record.type for record in await records(bed)} == {RecordType.SEGMENT}


async def heard_without_a_break(folder: Path, rules: Segments) -> list[Segment]:
    """The segments of all samples, one take each."""
    folder.mkdir()
    async with Bed(folder) as bed, hearing() as speech, running(listener(bed, speech, rules)):
        for path in SAMPLES:
            await feed(bed, await bed.recorder.begin(path.name, "1"), sound_of(path))
        await soon(lambda: all_is_heard(bed), "all is heard")
        return await segments(bed)


def said(found: list[Segment]) -> list[tuple[str, int, int, str]]:
    return [(s.name, s.start, s.samples, s.sha256) for s in found]


@pytest.mark.parametrize(
    "rules", [RULES, Segments(length_s_max=1.0)], ids=["usual cuts", "many cuts"]
)
@pytest.mark.parametrize("seed", range(20 if LONG else 2))
async def test_a_listener_broken_off_anywhere_gives_what_it_would_have_given(
    tmp_path: Path, seed: int, rules: Segments
) -> None:
    """Cancelled and begun again, and its model killed, at places by seed."""
    wanted = await heard_without_a_break(tmp_path / "whole", rules)
    chance = np.random.default_rng(seed)
    async with Bed(tmp_path) as bed, hearing() as speech:
        await speech.ready()
        ears = asyncio.create_task(listener(bed, speech, rules).run())
        for path in SAMPLES:
            take, sound = await bed.recorder.begin(path.name, "1"), sound_of(path)
            for start in range(0, len(sound), CHUNK):
                take = await feed(bed, take, sound[start : start + CHUNK], end=False)
                fate = chance.random()
                if fate < 0.5:
                    for _ in range(chance.integers(2000)):  # some of it is heard
                        await asyncio.sleep(0)
                if fate < 0.2:
                    ears.cancel()
                    await asyncio.wait([ears])
                    ears = asyncio.create_task(listener(bed, speech, rules).run())
                elif fate > 0.9 and speech.domain.pid:
                    with contextlib.suppress(ProcessLookupError):  # killed before, not yet missed
                        os.kill(speech.domain.pid, signal.SIGKILL)
            await feed(bed, take, sound[:0])
        await soon(lambda: all_is_heard(bed) if not ears.done() else ears.result(), "all is heard")
        ears.cancel()
        await asyncio.wait([ears])
        found = await segments(bed)
        assert speech.domain.restarts > 0
    do_not_overlap(found)
    assert said(found) == said(wanted)


async def test_a_take_that_goes_on_after_another_one_is_heard_once(
    bed: Bed, speech: Speech
) -> None:
    """A recording is broken off by a restart, and an older file comes before the rest of it."""
    sound = np.resize(sound_of(SAMPLES[0]), 20 * CHUNK)
    first = await feed(bed, await bed.recorder.begin("first", "1"), sound[: 9 * CHUNK], end=False)
    async with running(listener(bed, speech, ALL_IS_SPEECH)):
        await soon(lambda: segments(bed), "some of it is a segment")
    first = await feed(bed, first, sound[9 * CHUNK : 10 * CHUNK], end=False)
    await feed(bed, await bed.recorder.begin("other", "1"), sound[: 4 * CHUNK])
    await feed(bed, first, sound[10 * CHUNK :])
    async with running(listener(bed, speech, ALL_IS_SPEECH)):
        await soon(lambda: all_is_heard(bed), "all is heard")
    spans = [(s.start, s.start + s.samples) for s in await segments(bed) if s.name == "first"]
    edges = [0, *(end for _, end in spans)]
    assert [start for start, _ in spans] == edges[:-1], "a gap or an overlap"
    assert edges[-1] == len(sound)


async def test_sound_that_kills_the_worker_is_a_dead_letter_and_hearing_goes_on_behind_it(
    bed: Bed, speech: Speech
) -> None:
    sound = soundfile.read(SAMPLES[0], dtype="int16")[0]
    take = await bed.store.spool.begin(SOURCE, "a.wav", "1")
    take = await feed(bed, take, sound, end=False)
    before = (await bed.balance()).produced
    take = await bed.store.spool.accept(take, b"abc")  # no 16-bit samples
    await feed(bed, take, sound)
    async with running(listener(bed, speech)):
        await soon(lambda: bed.condition("dead_letters"), "it is given up")
        await soon(lambda: one_is_held(bed), "the rest is heard")
    assert await bed.store.spool.dead(SOURCE) == [(before + 1, DIED)]
    assert (await bed.balance()).dropped == {"processed": (await bed.balance()).produced - 1}
    found = await segments(bed)
    alone = await heard_alone(bed.folder / "alone", sound, speech)
    assert [s.samples for s in found] == [s.samples for s in alone] * 2
    # After a restart it is still there, still said, and not heard again.
    bed.conditions.clear("dead_letters", SOURCE)
    async with running(listener(bed, speech)):
        await soon(lambda: bed.condition("dead_letters"), "it is said again")
    assert len(await segments(bed)) == len(found)


DIED = "0.0 s of sound ended the domain audio 3 times"


async def one_is_held(bed: Bed) -> bool:
    return (await bed.balance()).held == 1


async def heard_alone(folder: Path, sound: np.ndarray, speech: Speech) -> list[Segment]:
    folder.mkdir()
    async with Bed(folder) as bed:
        await feed(bed, await bed.store.spool.begin(SOURCE, "a.wav", "1"), sound)
        async with running(listener(bed, speech)):
            await soon(lambda: all_is_heard(bed), "all is heard")
        return await segments(bed)


async def test_a_damaged_row_is_a_dead_letter_and_hearing_goes_on_behind_it(
    bed: Bed, speech: Speech
) -> None:
    sound = soundfile.read(SAMPLES[0], dtype="int16")[0]
    take = await bed.store.spool.begin(SOURCE, "a.wav", "1")
    take = await feed(bed, take, sound, end=False)
    damaged = (await bed.balance()).produced
    await feed(bed, take, sound)
    await bed.store._database.write(
        lambda c: (
            c.execute(
                "UPDATE records SET body = zeroblob(length(body)) WHERE seq = ?", (damaged,)
            ).rowcount
        )
    )
    async with running(listener(bed, speech)):
        await soon(lambda: one_is_held(bed), "the rest is heard")
    assert await bed.store.spool.dead(SOURCE) == [(damaged, "its row in the store is damaged")]
    assert len(await segments(bed)) > 1
    await bed.store.decisions.drop((bed.store.epoch, f"{SOURCE}.raw"), Range(damaged, damaged))


async def test_a_take_with_a_hole_in_it_is_heard_on_both_sides_of_the_hole(
    bed: Bed, speech: Speech
) -> None:
    """Raw audio that was evicted: what comes behind is not taken for what followed."""
    sound = soundfile.read(SAMPLES[0], dtype="int16")[0]
    take = await bed.store.spool.begin(SOURCE, "a.wav", "1")
    await feed(bed, await feed(bed, take, sound, end=False), sound)
    rows = await bed.raw()
    first, last = rows[5][0], rows[9][0]
    hole = Range(first, last)
    await bed.store._database.write(lambda c: streams.drop(c, 1, hole, "evicted"))
    gap = range(rows[5][1].offset, rows[10][1].offset)
    async with running(listener(bed, speech)):
        await soon(lambda: all_is_heard(bed), "all is heard")
    found = await segments(bed)
    assert found
    for segment in found:
        inside = range(segment.start, segment.start + segment.samples)
        assert inside.stop <= gap.start or inside.start >= gap.stop
    do_not_overlap(found)
