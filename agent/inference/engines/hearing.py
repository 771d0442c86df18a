"""The speech engine as a worker calls it: the calls of many streams, heard together."""

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.inference.engines import Call, Done, Faulty
from agent.inference.engines.speech import Answer, Floats
from agent.inference.engines.speech import Engine as Speech
from agent.inference.wire import Heard, Load, Loaded, Part, Setup

Pcm = NDArray[np.int16]


class Engine:
    """One speech network."""

    def __init__(self, load: Load, setup: Setup) -> None:
        began = time.perf_counter()
        try:
            self._speech = Speech(Path(load.path), **load.options)
        except TypeError as error:
            raise ModelError(
                f"{load.path}: the options of its model.yaml are not those of a speech model: "
                f"{error}",
                "expected rate_hz, hop_samples, window_samples",
            ) from error
        self._decoder = msgspec.msgpack.Decoder(Part)
        self._encoder = msgspec.msgpack.Encoder()
        loaded_s = time.perf_counter() - began
        memory_size = self._speech.memory_size
        self.loaded = Loaded(
            self._speech.ep,
            loaded_s,
            batching=True,
            fallback="" if setup.devices[0] == "cpu" else "the speech engine runs on the CPU alone",
            memory_size=memory_size,
        )

    def run(self, calls: list[Call], options: Any) -> list[Done | Faulty]:
        """Hear the calls' sound, each stream with its own memory."""
        heads = [bytes(call.head) for call in calls]
        if heads.count(heads[0]) == len(heads):
            parts = [self._decoder.decode(heads[0])] * len(heads)
            pcm, memories = self._side_by_side(parts[0], calls)
        else:
            parts = [self._decoder.decode(head) for head in heads]
            pcm, memories = self._one_by_one(parts, calls)
        answer = self._speech.listen(parts, pcm, memories)
        first = answer.sizes[0]
        if answer.sizes.count(first) == len(calls):
            return self._alike(answer, *first)
        return self._mixed(answer)

    def _side_by_side(self, part: Part, calls: list[Call]) -> tuple[Pcm, Floats]:
        """The sound and the memories of calls that have the same form, as live streams' have."""
        whole = np.frombuffer(b"".join([call.body for call in calls]), np.uint8)
        rows = whole.reshape(len(calls), -1)
        end = 2 * part.samples
        pcm = np.ascontiguousarray(rows[:, :end]).view(np.int16).reshape(-1)
        return pcm, np.ascontiguousarray(rows[:, end:]).view(np.float32)

    def _one_by_one(self, parts: list[Part], calls: list[Call]) -> tuple[Pcm, Floats]:
        ends = [2 * part.samples for part in parts]
        pcm = b"".join([call.body[:end] for call, end in zip(calls, ends, strict=True)])
        held = b"".join([call.body[end:] for call, end in zip(calls, ends, strict=True)])
        memories = np.frombuffer(held, np.float32).reshape(len(calls), self._speech.memory_size)
        return np.frombuffer(pcm, np.int16), memories

    def _alike(self, answer: Answer, samples: int, hops: int) -> list[Done | Faulty]:
        """Of live streams all answers have the same sizes: one buffer holds them all."""
        count = len(answer.sizes)
        parts = [array.reshape(count, -1).view(np.uint8) for array in answer[1:]]
        whole = np.concatenate(parts, axis=1)
        head = self._head(samples, hops)
        size = whole.shape[1]
        rest: list[Done | Faulty] = [Done(head, size, ())] * (count - 1)
        return [Done(head, size, [whole.reshape(-1).data]), *rest]

    def _mixed(self, answer: Answer) -> list[Done | Faulty]:
        clean, speech, kept = answer.body
        found: list[Done | Faulty] = []
        at = hop = 0
        memory_bytes = 4 * self._speech.memory_size
        for i, (samples, hops) in enumerate(answer.sizes):
            body = [
                clean[at : at + 2 * samples],
                speech[hop : hop + 4 * hops],
                kept[memory_bytes * i : memory_bytes * (i + 1)],
            ]
            at, hop = at + 2 * samples, hop + 4 * hops
            size = 2 * samples + 4 * hops + memory_bytes
            found.append(Done(self._head(samples, hops), size, body))
        return found

    def _head(self, samples: int, hops: int) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(Heard(samples, hops)))
