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

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from agent.errors import ModelError
from agent.inference.wire import BEGUN, REST, Part

Floats = NDArray[np.float32]
REFUSALS = (  # what ONNX Runtime raises about a model; they have no base class of their own
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoSuchFile,
    refusals.NotImplemented,
    refusals.RuntimeException,
)
FULL_SCALE = 32768.0
OUTPUTS = ["clean", "speech", "state_out"]


class Voice:
    """A memory, taken apart while a call works on it."""

    def __init__(self, memory: Floats, state_size: int, hop: int) -> None:
        self.state, self.last_hop, self.overlap, rest = np.split(
            memory[:-2], [state_size, state_size + hop, state_size + 2 * hop]
        )
        self.begun, self.rest = bool(memory[BEGUN]), rest[: int(memory[REST])]

    def memory(self) -> Floats:
        """Put together again."""
        room = np.zeros(len(self.overlap) - len(self.rest), np.float32)
        tail = np.array([self.begun, len(self.rest)], np.float32)
        return np.concatenate(
            [self.state, self.last_hop, self.overlap, self.rest, room, tail], dtype=np.float32
        )


class Engine:
    """One ONNX Runtime session on one thread."""

    def __init__(self, model: Path, hop_samples: int, window_samples: int) -> None:
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
        self._state_size = self._checked(model, window_samples // 2 + 1)
        self._hop = hop_samples
        self._window = np.sqrt(np.hanning(window_samples + 1)[:-1]).astype(np.float32)

    @property
    def memory_size(self) -> int:
        """Length of a stream's memory; a new stream's is all zeros."""
        return self._state_size + 3 * self._hop + 2

    def listen(
        self, parts: list[Part], pcm: NDArray[np.int16], memories: Floats
    ) -> tuple[list[Floats], list[Floats], Floats]:
        """Each part's clean samples (full scale 1) and speech probability per hop; the memories.

        `pcm` holds the parts' samples one after the other, `memories` is [parts, memory_size].
        """
        voices = [Voice(memory, self._state_size, self._hop) for memory in memories]
        sounds = np.split(pcm, np.cumsum([part.samples for part in parts])[:-1])
        hops = [
            self._hops(part, voice, sound)
            for part, voice, sound in zip(parts, voices, sounds, strict=True)
        ]
        spectra = [self._spectra(voice, new) for voice, new in zip(voices, hops, strict=True)]
        masked, speech = self._infer(voices, spectra)
        clean = [
            self._overlapped(voice, frames) for voice, frames in zip(voices, masked, strict=True)
        ]
        return clean, speech, np.stack([voice.memory() for voice in voices])

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

    def _hops(self, part: Part, voice: Voice, pcm: NDArray[np.int16]) -> Floats:
        """The part's complete hops [H, hop]; at the end padded, with one hop more to flush."""
        samples = np.concatenate([voice.rest, pcm.astype(np.float32) / FULL_SCALE])
        if part.end:
            padding = -len(samples) % self._hop + self._hop
            samples = np.concatenate([samples, np.zeros(padding, np.float32)])
        count = len(samples) // self._hop
        voice.rest = samples[count * self._hop :]
        return samples[: count * self._hop].reshape(count, self._hop)

    def _spectra(self, voice: Voice, hops: Floats) -> Floats:
        """Spectra [H, 2, bins] of the frames that end with each hop."""
        line = np.concatenate([voice.last_hop[None], hops])
        voice.last_hop = line[-1]
        spectra = np.fft.rfft(np.concatenate([line[:-1], line[1:]], axis=1) * self._window, axis=1)
        parts: Floats = np.stack([spectra.real, spectra.imag], axis=1).astype(np.float32)
        return parts

    def _infer(
        self, voices: list[Voice], spectra: list[Floats]
    ) -> tuple[list[Floats], list[Floats]]:
        """The network over time: step t runs every stream that has a t-th hop in one batch.

        The longest stream is the first row, so that a step's streams are the first rows.
        """
        order = sorted(range(len(spectra)), key=lambda i: -len(spectra[i]))
        hops = [len(spectra[i]) for i in order]
        line = np.empty((hops[0], len(order), *spectra[0].shape[1:]), np.float32)
        for row, i in enumerate(order):
            line[: hops[row], row] = spectra[i]
        speech = np.empty((hops[0], len(order)), np.float32)
        state = np.stack([voices[i].state for i in order])
        active = len(order)
        for t in range(hops[0]):
            while hops[active - 1] <= t:
                active -= 1
            step = {"spectrum": line[t, :active], "state": state[:active]}
            line[t, :active], speech[t, :active], state[:active] = self._session.run(OUTPUTS, step)
        masked = list(spectra)
        heard = list(spectra)
        for row, i in enumerate(order):
            voices[i].state = state[row]
            masked[i], heard[i] = line[: hops[row], row], speech[: hops[row], row].copy()
        return masked, heard

    def _overlapped(self, voice: Voice, masked: Floats) -> Floats:
        """The samples that are complete now, from the halves of neighbouring frames."""
        if not len(masked):
            return np.zeros(0, np.float32)
        frames = np.fft.irfft(masked[:, 0] + 1j * masked[:, 1], axis=1).astype(np.float32)
        frames *= self._window
        carried = np.concatenate([voice.overlap[None], frames[:-1, self._hop :]])
        voice.overlap = frames[-1, self._hop :]
        done = frames[:, : self._hop] + carried
        samples: Floats = done[0 if voice.begun else 1 :].reshape(-1)
        voice.begun = True
        return samples
