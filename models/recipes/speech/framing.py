"""The STFT as the agent frames it: frame k is [hop k-1, hop k], and hop -1 is silence.

The windows overlap by half and their squares add up to one, so that the samples of hop k-1 are
complete once frame k has been added: the output is one hop late.
"""

import numpy as np
import torch
from torch import Tensor

from .layout import HOP, WINDOW

SHAPE = np.sqrt(np.hanning(WINDOW + 1)[:-1]).astype(np.float32)  # sqrt of the periodic Hann
TORCH_SHAPE = torch.from_numpy(SHAPE)


def analysed(wave: Tensor) -> Tensor:
    """Samples [N, T*HOP] -> complex spectra [N, T, BINS]."""
    padded = torch.nn.functional.pad(wave, (HOP, 0))
    return torch.fft.rfft(padded.unfold(-1, WINDOW, HOP) * TORCH_SHAPE)


def synthesised(spectra: Tensor) -> Tensor:
    """Complex spectra [N, T, BINS] -> samples [N, (T-1)*HOP], aligned with the input.

    Sample 0 is the first of the hop before frame 1, the last hop is never complete.
    """
    frames = torch.fft.irfft(spectra) * TORCH_SHAPE
    return (frames[:, :-1, HOP:] + frames[:, 1:, :HOP]).flatten(1)


class Stream:
    """The same for one hop at a time and N streams, in numpy."""

    def __init__(self, streams: int) -> None:
        self.before = np.zeros((streams, HOP), np.float32)
        self.rest = np.zeros((streams, HOP), np.float32)

    def analyse(self, hop: np.ndarray) -> np.ndarray:
        """Samples [N, HOP] -> spectrum [N, 2, BINS] (real, imaginary)."""
        spectrum = np.fft.rfft(np.concatenate([self.before, hop], 1) * SHAPE)
        self.before = hop
        return np.stack([spectrum.real, spectrum.imag], 1).astype(np.float32)

    def synthesise(self, spectrum: np.ndarray) -> np.ndarray:
        """Spectrum [N, 2, BINS] -> the samples [N, HOP] of the hop before."""
        frame = np.fft.irfft(spectrum[:, 0] + 1j * spectrum[:, 1]).astype(np.float32) * SHAPE
        hop = self.rest + frame[:, :HOP]
        self.rest = frame[:, HOP:]
        return hop
