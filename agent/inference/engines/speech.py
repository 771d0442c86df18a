"""The speech engine: denoises and finds speech, many streams at once, hop by hop.

It remembers nothing between calls: each part of a call brings its stream's memory and takes the new
one away, so any worker can go on with any stream, and a call that died with a worker is repeated as
it was. A memory is one float32 vector:

    state (S) | last hop | overlap | samples that fill no hop (one hop's room) | BEGUN | REST

where REST is the number of those samples and BEGUN is 1 once a hop was complete.

Framing: frame k is hops k-1 and k under a square-root Hann window, so hop k-1 is complete once
frame k is done. The engine hides this delay of one hop: clean sound begins at the stream's first
sample, and the last hop comes out when the stream ends. The network takes spectra [N, 2, bins]
(real, imaginary) and states [N, S]; the streams of a call share each of its steps.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.inference.engines.session import REFUSALS
from agent.inference.wire import BEGUN, REST, Part

Floats = NDArray[np.float32]
Numbers = NDArray[np.intp]
Spectra = NDArray[np.complex64]
FULL_SCALE = 32768.0
OUTPUTS = ["clean", "speech", "state_out"]


class Answer(NamedTuple):
    """How many clean samples and how many hops each part has, then those of all parts together.

    `clean` is 16-bit, `speech` a probability per hop, `memories` is [parts, memory_size].
    """

    sizes: list[tuple[int, int]]
    clean: NDArray[np.int16]
    speech: Floats
    memories: Floats

    @property
    def body(self) -> list[memoryview]:
        """What follows the sizes, as bytes, in this order, and not copied."""
        arrays = (self.clean, self.speech, self.memories)
        return [array.reshape(-1).view(np.uint8).data for array in arrays]


class Rows(NamedTuple):
    """Where a call's hops lie, as rows of one array, part after part.

    `some` are the parts that have any; `first` and `last` are the rows where each of those begins
    and ends.
    """

    hops: Numbers  # of every part
    some: Numbers | slice
    first: Numbers | slice
    last: Numbers | slice

    @classmethod
    def of(cls, counts: list[int]) -> "Rows":
        """From the number of hops of each part. Live streams have one each: no row is looked up."""
        hops = np.array(counts)
        if counts.count(1) == len(counts):
            return cls(hops, slice(None), slice(None), slice(None))
        ends, some = np.cumsum(hops), np.flatnonzero(hops)
        return cls(hops, some, (ends - hops)[some], ends[some] - 1)

    def steps(self) -> tuple[Numbers | slice, Numbers | slice, list[int]]:
        """How to run the network over time: rows in order of time, parts, and how many a step.

        Step t runs every part that has a t-th hop. The longest part comes first, so that a step's
        parts are the first ones of the step before.
        """
        if isinstance(self.some, slice):
            return self.some, self.some, [len(self.hops)]
        longest = int(self.hops.max())
        if longest == 1 or len(self.some) == 1:
            return slice(None), self.some, [len(self.some)] * longest
        parts = np.argsort(-self.hops, kind="stable")
        rank = np.argsort(parts)
        ends = np.cumsum(self.hops)
        step = np.arange(ends[-1]) - np.repeat(ends - self.hops, self.hops)
        rows = np.lexsort((np.repeat(rank, self.hops), step))
        active = np.bincount(step).tolist()
        return rows, parts[: active[0]], active


class Engine:
    """One ONNX Runtime session on one thread."""

    def __init__(self, model: Path, rate_hz: int, hop_samples: int, window_samples: int) -> None:
        if window_samples != 2 * hop_samples:
            raise ModelError(
                f"{model}: a window of {window_samples} samples over hops of {hop_samples}; "
                "expected twice the hop"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except REFUSALS as error:
            raise ModelError(f"{model}: ONNX Runtime refuses it: {error}") from error
        self.ep: str = self._session.get_providers()[0]
        self.rate_hz = rate_hz
        self._state_size = self._checked(model, window_samples // 2 + 1)
        self._hop, self._live = hop_samples, Part(hop_samples)
        bounds = np.cumsum([0, self._state_size, hop_samples, hop_samples, hop_samples]).tolist()
        self._state, self._last_hop, self._overlap, self._rest = map(slice, bounds, bounds[1:])
        self._window = np.sqrt(np.hanning(window_samples + 1)[:-1]).astype(np.float32)
        # The spectra are made with norm="forward", which divides by the window's length: without,
        # numpy computes them in float64, in more than twice the time.
        self._analysis = (self._window * np.float32(window_samples)).reshape(2, hop_samples)

    @property
    def memory_size(self) -> int:
        """Length of a stream's memory; a new stream's is all zeros."""
        return self._state_size + 3 * self._hop + 2

    def listen(self, parts: list[Part], pcm: NDArray[np.int16], memories: Floats) -> Answer:
        """The next sound of many streams, and their memories, which stay as they are.

        `pcm` holds the parts' samples one after the other, `memories` is [parts, memory_size].
        """
        memories = memories.copy()
        sound, hops = self._hops(parts, pcm, memories)
        if not len(sound):
            nothing = np.zeros(0, np.int16), np.zeros(0, np.float32)
            return Answer([(0, 0)] * len(parts), *nothing, memories)
        rows = Rows.of(hops)
        spectra = self._spectra(sound, rows, memories)
        speech = self._infer(spectra, rows, memories)
        begun = memories[:, BEGUN].tolist()
        clean = self._overlapped(spectra, rows, memories)
        sizes = [
            (self._hop * (count if known else max(0, count - 1)), count)
            for count, known in zip(hops, begun, strict=True)
        ]
        return Answer(sizes, clean, speech, memories)

    def _checked(self, model: Path, bins: int) -> int:
        """The size of the network's state; ModelError when it is not a speech network."""
        inputs = {i.name: i.shape for i in self._session.get_inputs()}
        outputs = {o.name for o in self._session.get_outputs()}
        if (
            inputs.get("spectrum", [])[1:] != [2, bins]
            or len(inputs.get("state", [])) != 2
            or not outputs >= set(OUTPUTS)
        ):
            raise ModelError(
                f"{model}: expected inputs spectrum [N, 2, {bins}] and state [N, S], outputs "
                f"clean, speech, state_out; found {inputs} -> {sorted(outputs)}"
            )
        return int(inputs["state"][1])

    def _hops(
        self, parts: list[Part], pcm: NDArray[np.int16], memories: Floats
    ) -> tuple[Floats, list[int]]:
        """All complete hops [R, hop], part after part, and how many of them each part has.

        At its end a stream is padded, with one hop more to flush. The memories keep the rest.
        """
        sound = np.multiply(pcm, np.float32(1 / FULL_SCALE), dtype=np.float32)
        if parts.count(self._live) == len(parts) and not np.count_nonzero(memories[:, REST]):
            return sound.reshape(-1, self._hop), [1] * len(parts)
        bounds = np.cumsum([part.samples for part in parts])[:-1]
        lines = [
            self._line(part, samples, memory)
            for part, samples, memory in zip(parts, np.split(sound, bounds), memories, strict=True)
        ]
        hops = [len(line) // self._hop for line in lines]
        return np.concatenate(lines).reshape(-1, self._hop), hops

    def _line(self, part: Part, sound: Floats, memory: Floats) -> Floats:
        """One part's complete hops as one line; the memory keeps the rest."""
        rest, held = memory[self._rest], int(memory[REST])
        padding = -(held + len(sound)) % self._hop + self._hop if part.end else 0
        line = np.concatenate([rest[:held], sound, np.zeros(padding, np.float32)])
        complete = len(line) - len(line) % self._hop
        left = line[complete:]
        rest[: len(left)], rest[len(left) :], memory[REST] = left, 0, len(left)
        return line[:complete]

    def _spectra(self, sound: Floats, rows: Rows, memories: Floats) -> Spectra:
        """Spectra [R, bins] of the frames that end with each hop."""
        frames = np.empty((len(sound), 2, self._hop), np.float32)
        frames[1:, 0] = sound[:-1]
        frames[rows.first, 0] = memories[rows.some, self._last_hop]
        frames[:, 1] = sound
        frames *= self._analysis
        memories[rows.some, self._last_hop] = sound[rows.last]
        spectra = np.fft.rfft(frames.reshape(len(sound), -1), norm="forward")
        return spectra.astype(np.complex64, copy=False)  # it is; numpy's annotations say otherwise

    def _infer(self, spectra: Spectra, rows: Rows, memories: Floats) -> Floats:
        """The network over time: the spectra become clean; the speech probability per hop."""
        order, parts, steps = rows.steps()
        line = np.empty((len(spectra), 2, spectra.shape[1]), np.float32)
        line[:, 0], line[:, 1] = spectra.real[order], spectra.imag[order]
        state = np.ascontiguousarray(memories[parts, self._state])
        clean, heard, state = self._over_time(line, state, steps)
        memories[parts, self._state] = state
        spectra.real[order], spectra.imag[order] = clean[:, 0], clean[:, 1]
        speech = np.empty_like(heard)
        speech[order] = heard
        return speech

    def _over_time(
        self, line: Floats, state: Floats, steps: list[int]
    ) -> tuple[Floats, Floats, Floats]:
        """The network's three outputs, step after step."""
        if len(steps) == 1:
            clean, heard, after = self._session.run(OUTPUTS, {"spectrum": line, "state": state})
            return clean, heard, after
        heard = np.empty(len(line), np.float32)
        begin = 0
        for active in steps:
            step = slice(begin, begin + active)
            inputs = {"spectrum": line[step], "state": state[:active]}
            line[step], heard[step], state[:active] = self._session.run(OUTPUTS, inputs)
            begin += active
        return line, heard, state

    def _overlapped(self, spectra: Spectra, rows: Rows, memories: Floats) -> NDArray[np.int16]:
        """The samples that are complete now, from the halves of neighbouring frames."""
        frames = np.fft.irfft(spectra)
        frames *= self._window
        done = np.empty((len(frames), self._hop), np.float32)
        done[1:] = frames[:-1, self._hop :]
        done[rows.first] = memories[rows.some, self._overlap]
        done += frames[:, : self._hop]
        memories[rows.some, self._overlap] = frames[rows.last, self._hop :]
        if np.count_nonzero(memories[:, BEGUN]) < len(memories):
            fresh = (memories[:, BEGUN] == 0) & (rows.hops > 0)
            done = np.delete(done, (np.cumsum(rows.hops) - rows.hops)[fresh], axis=0)
            memories[fresh, BEGUN] = 1
        done *= np.float32(FULL_SCALE)
        np.rint(done, out=done)
        return np.clip(done, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16).reshape(-1)
