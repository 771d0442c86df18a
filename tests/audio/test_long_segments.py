"""Long segments: into the store while they are open, never in memory whole, and never in part."""

import asyncio
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from agent.audio import codec, segmenter
from agent.audio.listener import Passage
from agent.audio.segmenter import Segmenter, Stretch
from agent.config import Segments
from agent.errors import StoreFull
from agent.inference.speech import FRESH, Speech
from agent.records import RATE_HZ, Segment
from agent.store.drafts import Draft, Drafts
from tests.audio.bed import Bed, running, soon
from tests.audio.test_listener import SAMPLES, all_is_heard, hearing, listener, records
from tests.audio.test_segmenter import ANY, CALLS, HOP, Take, any_rules, heard, takes, usual_rules

PIECE = 64 * 1024
BLOCK = 2 * RATE_HZ
LENGTH_S = 300
# Whatever the model says is speech.
ONE_LONG = Segments(open_probability=0.0, close_probability=0.0, length_s_max=LENGTH_S)


def block(number: int) -> np.ndarray:
    """Two seconds of a long talk: the shipped recordings, and noise that FLAC cannot shorten."""
    speech = soundfile.read(SAMPLES[number % len(SAMPLES)], dtype="int16")[0]
    noise = np.random.default_rng(number).normal(0, 2000, BLOCK)
    return np.clip(np.resize(speech, BLOCK) + noise, -32768, 32767).astype(np.int16)


async def talk(bed: Bed, seconds: int) -> None:
    take = await bed.recorder.begin("talk", "1")
    for number in range(seconds // 2):
        take = await bed.recorder.accept(take, block(number))
    await bed.recorder.accept(take, block(0)[:0], end=True)


async def clean(speech: Speech, seconds: int) -> np.ndarray:
    """All that the model makes of the talk."""
    memory, sound = FRESH, []
    for number in range(seconds // 2):
        heard_now = await speech.hear(block(number).tobytes(), memory)
        memory = heard_now.memory
        sound.append(heard_now.clean)
    sound.append((await speech.hear(b"", memory, end=True)).clean)
    return np.concatenate(sound)


async def kept(bed: Bed) -> list[tuple[Segment, bytes]]:
    found = []
    for record in await records(bed):
        flac = await bed.store.outbox.blob(record, 0, record.blob_bytes)
        found.append((msgspec.json.decode(record.body, type=Segment), flac))
    return found


async def pieces(bed: Bed) -> int:
    """Pieces of drafts that are in the store."""
    return await bed.store._database.read(
        lambda c: c.execute(
            "SELECT count(*) FROM chunks WHERE id >> 12 IN (SELECT blob FROM drafts)"
        ).fetchone()[0]
    )


async def are_whole(bed: Bed, speech: Speech, seconds: int) -> list[Segment]:
    """The segments are, byte for byte, what the whole encoded at once is; nothing else is there."""
    sound = await clean(speech, seconds)
    found = await kept(bed)
    for segment, flac in found:
        pcm = sound[segment.start : segment.start + segment.samples]
        assert (flac, segment.sha256) == codec.encode(pcm)
        assert (segment.size_bytes, segment.rate_hz) == (len(flac), RATE_HZ)
    assert await pieces(bed) == 0
    orphans = "SELECT id >> 12 FROM chunks EXCEPT SELECT blob FROM records"
    assert await bed.store._database.read(lambda c: c.execute(orphans).fetchall()) == []
    return [segment for segment, _ in found]


def watched(patch: pytest.MonkeyPatch) -> list[int]:
    """How many raw records a passage remembers, again and again."""
    position, steps = Passage.position, list[int]()

    def thinned(passage: Passage, *arguments: object, **named: object) -> object:
        steps.append(len(passage.steps))
        return position(passage, *arguments, **named)

    patch.setattr(Passage, "position", thinned)
    return steps


async def test_a_segment_of_five_minutes_is_never_in_memory_whole(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = LENGTH_S + 20
    await talk(bed, seconds)
    async with hearing() as speech:
        steps = watched(monkeypatch)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            async with running(listener(bed, speech, ONE_LONG)):
                await soon(lambda: all_is_heard(bed), "all is heard")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        found = await are_whole(bed, speech, seconds)
    cut = LENGTH_S * RATE_HZ - HOP  # clean sound lags by a hop
    whole = seconds * RATE_HZ
    assert [(s.start, s.samples) for s in found] == [(0, cut), (cut, whole - cut)]
    assert found[0].size_bytes > 20 * PIECE
    assert max(steps) < 20, "of 160 raw records"
    assert peak - before < 3 << 20, "its sound alone is 9.2 MiB"
    (_, flac), _ = await kept(bed)
    (tmp_path / "x.flac").write_bytes(flac)
    file = soundfile.SoundFile(tmp_path / "x.flac")
    assert (file.frames, file.seekable()) == (cut, True), "it says how long it is"
    file.close()


async def test_a_draft_that_a_crash_left_is_removed_and_its_segment_made_again(
    tmp_path: Path,
) -> None:
    seconds = 40
    async with hearing() as speech:
        async with Bed(tmp_path) as bed:
            await talk(bed, seconds)
            ears = asyncio.create_task(listener(bed, speech, ONE_LONG).run())
            await soon(lambda: pieces(bed), "a part of the segment is in the store")
            ears.cancel()
            await asyncio.wait([ears])
            if not (left := await pieces(bed)):
                pytest.fail("it was heard to the end before it was broken off")
            assert await records(bed) == []
        async with Bed(tmp_path) as bed:
            assert await pieces(bed) == 0, f"{left} were left"
            async with running(listener(bed, speech, ONE_LONG)):
                await soon(lambda: all_is_heard(bed), "all is heard")
            assert len(await are_whole(bed, speech, seconds)) == 1


async def test_when_the_disk_is_full_the_segment_is_made_again_later(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend, calls = Drafts.extend, []

    async def full(drafts: Drafts, draft: Draft, content: bytes) -> Draft:
        calls.append(draft.next)
        if len(calls) == 2:
            raise StoreFull("the disk is full", "make room on the disk")
        return await extend(drafts, draft, content)

    monkeypatch.setattr(Drafts, "extend", full)
    await talk(bed, 60)
    async with hearing() as speech:
        async with running(listener(bed, speech, ONE_LONG)):
            await soon(lambda: bed.condition("hearing_stopped"), "it is said")
            await soon(lambda: all_is_heard(bed), "all is heard")
        assert len(await are_whole(bed, speech, 60)) == 1
    assert calls[:3] == [1, calls[1], 1], "from its beginning"


async def test_a_stretch_that_is_forgotten_in_the_end_leaves_no_draft(bed: Bed) -> None:
    rules = msgspec.structs.replace(ONE_LONG, speech_s_min=100.0)
    begun = []
    await talk(bed, 40)
    async with hearing() as speech:
        ears = listener(bed, speech, rules)
        forget = bed.store.spool.drafts.forget

        async def seen(source: str | None = None) -> None:
            begun.append(await pieces(bed))
            await forget(source)

        bed.store.spool.drafts.forget = seen  # type: ignore[method-assign]
        async with running(ears):
            await soon(lambda: all_is_heard(bed), "all is heard")
            await soon(lambda: max(begun) > 0, "there was a draft")
            await soon(lambda: nothing_is_left(bed), "it is removed")
    assert await records(bed) == []


async def nothing_is_left(bed: Bed) -> bool:
    return await pieces(bed) == 0


async def test_short_segments_have_no_draft(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Drafts, "extend")
    await talk(bed, 20)
    rules = msgspec.structs.replace(ONE_LONG, length_s_max=8.0)
    async with hearing() as speech:
        async with running(listener(bed, speech, rules)):
            await soon(lambda: all_is_heard(bed), "all is heard")
        assert len(await are_whole(bed, speech, 20)) == 3


def in_parts(found: Segmenter, take: Take, calls: list[int]) -> list[tuple[int, np.ndarray, float]]:
    """As `heard`, but the sound is taken as it comes."""
    parts: dict[int, list[np.ndarray]] = {}
    stretches: list[Stretch] = []
    hop = clean_until = 0
    for end in [*np.cumsum(calls, dtype=int), len(take.speech)]:
        end = int(min(end, len(take.speech)))
        ready = max(clean_until, (end - 1) * HOP)
        stretches += found.push(take.clean[clean_until:ready], take.speech[hop:end])
        hop, clean_until = end, ready
        if len(part := found.take()):
            parts.setdefault(found.begun, []).append(part)
    stretches += found.finish(take.samples)
    return [
        (s.start, np.concatenate([*parts.get(s.begun, []), s.pcm]), s.speech) for s in stretches
    ]


@ANY
@given(
    take=takes(),
    rules=usual_rules() | any_rules(),
    calls=CALLS,
    take_s=st.sampled_from([0.001, 0.1, 0.5]),
)
@example(  # a stretch that was taken is forgotten, and the next one's margin reaches into it
    take=Take(90 * HOP - HOP, np.array([0.0] * 10 + [1.0] * 10 + [0.0] * 10 + [1.0] * 60, "f4")),
    rules=Segments(0.5, 0.5, speech_s_min=0.5, hangover_s=0.08, margin_s=0.5),
    calls=[1] * 90,
    take_s=0.001,
)
def test_taking_the_sound_as_it_comes_makes_no_difference(
    take: Take, rules: Segments, calls: list[int], take_s: float
) -> None:
    whole = [(s.start, s.pcm, s.speech) for s in heard(Segmenter(rules, HOP), take, calls)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(segmenter, "TAKE_S", take_s)
        parts = in_parts(Segmenter(rules, HOP), take, calls)
    assert [(start, speech) for start, _, speech in parts] == [(s, p) for s, _, p in whole]
    for (_, part, _), (_, pcm, _) in zip(parts, whole, strict=True):
        assert np.array_equal(part, pcm)


@pytest.mark.parametrize("samples", [0, 1, 4096, 100_000, 400_000])
@pytest.mark.parametrize("step", [1000, 160_001])
def test_flac_bit_by_bit_is_flac_at_once(samples: int, step: int) -> None:
    pcm = np.resize(block(0), samples)
    encoder, middle = codec.Encoder(PIECE), b""
    for start in range(0, samples, step):
        more = encoder.push(pcm[start : start + step])
        assert len(more) % PIECE == 0
        middle += more
    first, rest = encoder.finish(pcm[:0])
    assert first + middle + rest == codec.encode(pcm)[0]
