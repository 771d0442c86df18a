"""The speech engine alone, in this process: how sound is cut and batched changes nothing."""

import os
import random
from functools import cache

import numpy as np
import pytest
import soundfile

from agent.inference.catalog import Catalog
from agent.inference.engines.speech import Answer, Engine
from agent.inference.wire import Part
from tests.outside import ROOT

HOP = 256
SEED = int(os.environ.get("HOLDFAST_SEED", "5"))
LONG = os.environ.get("HOLDFAST_LONG") == "1"
APART = 999  # samples between the streams' places in the sound


@cache
def engine() -> Engine:
    return Engine(**Catalog(ROOT / "models").newest("speech").options)


@cache
def sound() -> np.ndarray:
    return soundfile.read(ROOT / "samples/fan.flac", dtype="int16")[0]


class Stream:
    """A stream's sound, what the engine remembers of it, and all it has answered."""

    def __init__(self, index: int) -> None:
        self.pcm = sound()[APART * index :]
        self.given = 0
        self.memory = np.zeros(engine().memory_size, np.float32)
        self.clean, self.speech = [np.zeros(0, np.int16)], [np.zeros(0, np.float32)]

    def take(self, samples: int) -> np.ndarray:
        self.given += samples
        return self.pcm[self.given - samples : self.given]

    def heard(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.clean), np.concatenate(self.speech)


def listen(streams: list[Stream], parts: list[Part]) -> Answer:
    """One call; each stream gets its part of the answer."""
    memories = np.stack([stream.memory for stream in streams])
    before = memories.copy()
    pcm = [stream.take(part.samples) for stream, part in zip(streams, parts, strict=True)]
    answer = engine().listen(parts, np.concatenate(pcm), memories)
    np.testing.assert_array_equal(memories, before)
    samples, hops = np.cumsum(answer.sizes, axis=0)[:-1].T
    for stream, memory, clean, speech in zip(
        streams,
        answer.memories,
        np.split(answer.clean, samples),
        np.split(answer.speech, hops),
        strict=True,
    ):
        stream.memory = memory
        stream.clean.append(clean)
        stream.speech.append(speech)
    return answer


def whole(index: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """A stream alone, in one call, to its end."""
    alone = Stream(index)
    listen([alone], [Part(samples, end=True)])
    return alone.heard()


def near(stream: Stream, index: int) -> None:
    """What the stream heard is what it would have heard alone; rounding differs by batch."""
    clean, speech = stream.heard()
    alone, probability = whole(index, stream.given)
    assert len(clean) == len(alone)
    assert np.abs(clean.astype(int) - alone).max(initial=0) <= 1
    np.testing.assert_allclose(speech, probability, atol=1e-3)


KINDS = {
    "live": [HOP],
    "hops": [0, HOP, 2 * HOP, 7 * HOP],
    "any": [0, 1, 100, HOP, HOP, 300, 1000, 5000],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 17])
def test_a_stream_among_others_hears_what_it_would_hear_alone(kind: str, count: int) -> None:
    """Streams with other numbers of hops, with none, some ending and begun again."""
    chance = random.Random(f"{SEED} {kind} {count}")
    streams = dict(enumerate(Stream(i) for i in range(count)))
    for _ in range(200 if LONG else 25):
        parts = [Part(chance.choice(KINDS[kind]), chance.random() < 0.1) for _ in streams]
        listen(list(streams.values()), parts)
        for i, part in enumerate(parts):
            if part.end:
                near(streams[i], i)
                streams[i] = Stream(i)
    listen(list(streams.values()), [Part(0, end=True)] * count)
    for i, stream in streams.items():
        near(stream, i)


@pytest.mark.parametrize("samples", [HOP, 3 * HOP, 100])
def test_a_stream_in_pieces_hears_exactly_what_it_hears_in_one(samples: int) -> None:
    stream = Stream(0)
    for _ in range(40):
        listen([stream], [Part(samples)])
    listen([stream], [Part(0, end=True)])
    clean, speech = whole(0, 40 * samples)
    np.testing.assert_array_equal(stream.heard()[0], clean)
    np.testing.assert_allclose(stream.heard()[1], speech, atol=1e-6)


def test_parts_without_a_hop_are_remembered_and_answered_with_nothing() -> None:
    streams = [Stream(i) for i in range(3)]
    answer = listen(streams, [Part(0), Part(10), Part(HOP - 1)])
    assert answer.sizes == [(0, 0)] * 3
    answer = listen(streams, [Part(0), Part(HOP - 10), Part(2)])
    assert answer.sizes == [(0, 0), (0, 1), (0, 1)]
    answer = listen(streams, [Part(0, end=True), Part(0, end=True), Part(HOP)])
    assert answer.sizes == [(0, 1), (HOP, 1), (HOP, 1)]


def test_the_body_is_the_answer_in_bytes() -> None:
    for part in (Part(0), Part(HOP), Part(1000)):
        answer = listen([Stream(0), Stream(1)], [part, part])
        arrays = (answer.clean, answer.speech, answer.memories)
        assert answer.clean.dtype == np.int16
        assert answer.speech.dtype == answer.memories.dtype == np.float32
        assert [len(each) for each in answer.body] == [array.nbytes for array in arrays]
        assert b"".join(answer.body) == b"".join(array.tobytes() for array in arrays)


def test_clean_sound_beyond_16_bits_is_held_at_their_ends() -> None:
    """The sum of two frames of clipped speech overshoots; turned over, it would be a loud click."""
    loud = np.clip(sound()[: 1000 * HOP].astype(int) * 8, -32768, 32767).astype(np.int16)
    memory = np.zeros((1, engine().memory_size), np.float32)
    clean = engine().listen([Part(len(loud), end=True)], loud, memory).clean.astype(int)
    assert (clean.min(), clean.max()) == (-32768, 32767)
    assert np.abs(np.diff(clean)).max() < 50_000
