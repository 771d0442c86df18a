"""The speech engine as a worker calls it: the calls of many streams, heard together."""

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.errors import ModelError
from agent.inference.engines import Call, Done, Faulty
from agent.inference.engines.speech import Engine as Speech
from agent.inference.wire import Heard, Load, Loaded, Part, Setup


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
        loaded_s = time.perf_counter() - began
        memory_size = self._speech.memory_size
        self.loaded = Loaded(self._speech.ep, loaded_s, batching=True, memory_size=memory_size)

    def run(self, calls: list[Call], options: Any) -> list[Done | Faulty]:
        """Hear the calls' sound, each stream with its own memory."""
        parts = [self._decoder.decode(call.head) for call in calls]
        ends = [2 * part.samples for part in parts]
        pcm = b"".join([call.body[:end] for call, end in zip(calls, ends, strict=True)])
        held = b"".join([call.body[end:] for call, end in zip(calls, ends, strict=True)])
        memories = np.frombuffer(held, np.float32).reshape(len(calls), self._speech.memory_size)
        answer = self._speech.listen(parts, np.frombuffer(pcm, np.int16), memories)
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
            found.append(Done(Heard(samples, hops), body))
        return found
