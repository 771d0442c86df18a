"""The speech engine: denoises and finds speech, many streams at once, hop by hop.

Framing: frame k is hops k-1 and k under a square-root Hann window, so hop k-1 is complete once
frame k is done: one hop of delay, which the engine hides (clean audio starts at the stream's first
sample, the last hop comes out when the stream ends). The network takes spectra [N, 2, bins] (real,
imaginary) and a state vector per stream; the streams of a call share each network step.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.inference.wire import Part

Floats = NDArray[np.float32]
FULL_SCALE = 32768.0


class Voice:
    """One stream's memory between calls: the network's state and the hops not yet complete."""

    def __init__(self, state_size: int, hop: int) -> None:
        self.state: Floats = np.zeros(state_size, np.float32)
        self.last_hop: Floats = np.zeros(hop, np.float32)  # the first half of the next frame
        self.overlap: Floats = np.zeros(hop, np.float32)  # the newest frame's second half
        self.rest: Floats = np.zeros(0, np.float32)  # samples that do not fill a hop
        self.started = False


class Engine:
    """One ONNX Runtime session on one thread, and the voices that are open in it."""

    def __init__(self, model: Path, hop_samples: int, window_samples: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self.ep: str = self._session.get_providers()[0]
        shapes = {i.name: i.shape for i in self._session.get_inputs()}
        outputs = {o.name for o in self._session.get_outputs()}
        bins = window_samples // 2 + 1
        if (
            shapes.get("spectrum", [])[1:] != [2, bins]
            or len(shapes.get("state", [])) != 2
            or not outputs >= {"clean", "speech", "state_out"}
        ):
            raise ModelError(
                f"{model}: expected inputs spectrum [N, 2, {bins}] and state [N, S], outputs "
                f"clean, speech, state_out; found {shapes} -> {sorted(outputs)}"
            )
        self._state_size = int(shapes["state"][1])
        self._hop = hop_samples
        self._window = np.sqrt(np.hanning(window_samples + 1)[:-1]).astype(np.float32)
        self._voices: dict[int, Voice] = {}

    def listen(self, parts: list[Part], pcm: NDArray[np.int16]) -> list[tuple[Floats, Floats]]:
        """Each part's clean samples (float, full scale 1) and speech probability per hop."""
        ends = np.cumsum([part.samples for part in parts])
        hops = [
            self._hops(part, pcm[end - part.samples : end])
            for part, end in zip(parts, ends, strict=True)
        ]
        spectra = [self._spectra(part, new) for part, new in zip(parts, hops, strict=True)]
        heard = self._infer([self._voices[part.stream] for part in parts], spectra)
        return [
            (self._overlapped(part, frames, pcm_hops), speech)
            for part, (frames, speech), pcm_hops in zip(parts, heard, hops, strict=True)
        ]

    def _hops(self, part: Part, pcm: NDArray[np.int16]) -> Floats:
        """The part's complete hops [H, hop]; at the end padded, with one hop more to flush."""
        voice = self._voices.setdefault(part.stream, Voice(self._state_size, self._hop))
        samples = np.concatenate([voice.rest, pcm.astype(np.float32) / FULL_SCALE])
        if part.end:
            padding = -len(samples) % self._hop + self._hop
            samples = np.concatenate([samples, np.zeros(padding, np.float32)])
        count = len(samples) // self._hop
        voice.rest = samples[count * self._hop :]
        return samples[: count * self._hop].reshape(count, self._hop)

    def _spectra(self, part: Part, hops: Floats) -> Floats:
        """Spectra [H, 2, bins] of the frames that end with each hop."""
        voice = self._voices[part.stream]
        before = np.concatenate([voice.last_hop[None], hops])
        voice.last_hop = before[-1]
        frames = np.concatenate([before[:-1], before[1:]], axis=1) * self._window
        spectra = np.fft.rfft(frames, axis=1)
        parts: Floats = np.stack([spectra.real, spectra.imag], axis=1).astype(np.float32)
        return parts

    def _infer(self, voices: list[Voice], spectra: list[Floats]) -> list[tuple[Floats, Floats]]:
        """The network over time: step t runs every stream that has a t-th hop in one batch."""
        order = sorted(range(len(spectra)), key=lambda i: -len(spectra[i]))
        clean = [np.empty_like(s) for s in spectra]
        speech = [np.empty(len(s), np.float32) for s in spectra]
        state = np.stack([voices[i].state for i in order])
        active = len(order)
        for t in range(len(spectra[order[0]])):
            while len(spectra[order[active - 1]]) <= t:
                active -= 1
            now = order[:active]
            step = {"spectrum": np.stack([spectra[i][t] for i in now]), "state": state[:active]}
            out, probability, state[:active] = self._session.run(
                ["clean", "speech", "state_out"], step
            )
            for row, i in enumerate(now):
                clean[i][t] = out[row]
                speech[i][t] = probability[row]
        for row, i in enumerate(order):
            voices[i].state = state[row]
        return list(zip(clean, speech, strict=True))

    def _overlapped(self, part: Part, clean: Floats, hops: Floats) -> Floats:
        """The samples that are complete now, from the frames' halves."""
        voice = self._voices[part.stream]
        if len(hops):
            frames = np.fft.irfft(clean[:, 0] + 1j * clean[:, 1], axis=1).astype(np.float32)
            frames *= self._window
            first, second = frames[:, : self._hop], frames[:, self._hop :]
            carried = np.concatenate([voice.overlap[None], second[:-1]])
            voice.overlap = second[-1]
            done = (first + carried)[0 if voice.started else 1 :]
            voice.started = True
        else:
            done = hops
        if part.end:
            del self._voices[part.stream]
        samples: Floats = done.reshape(-1)
        return samples
