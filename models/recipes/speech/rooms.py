"""Synthetic rooms: an impulse response is a direct path, early reflections and a decaying tail."""

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from .layout import RATE_HZ


def response(rng: np.random.Generator) -> np.ndarray:
    """A room's impulse response (float32); direct path at sample 0 with amplitude 1."""
    decay_s = rng.uniform(0.08, 0.5)  # time to -60 dB
    size = int(decay_s * RATE_HZ)
    time_s = np.arange(size) / RATE_HZ
    tail = rng.standard_normal(size) * 10 ** (-3 * time_s / decay_s)
    tail = np.convolve(tail, [0.6, 0.4])[:size]  # walls swallow high frequencies first
    tail[: int(0.004 * RATE_HZ)] = 0
    ratio_db = rng.uniform(0, 15)  # direct to reverberant
    tail *= 10 ** (-ratio_db / 20) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    for delay_s in rng.uniform(0.001, 0.03, rng.integers(2, 7)):
        tail[int(delay_s * RATE_HZ)] += rng.uniform(-0.35, 0.35)
    tail[0] = 1.0
    return tail.astype(np.float32)


def convolved(wave: np.ndarray, impulse: np.ndarray) -> np.ndarray:
    """The wave as it sounds through `impulse`, same length, no delay."""
    size = next_fast_len(len(wave) + len(impulse) - 1, real=True)
    return irfft(rfft(wave, size) * rfft(impulse, size), size)[: len(wave)].astype(np.float32)


def tilt(rng: np.random.Generator, span_db: float) -> np.ndarray:
    """A random smooth colour within +-span_db as a short FIR (float32) that adds no delay."""
    knots = rng.uniform(-span_db, span_db, 5)
    gain_db = np.interp(np.linspace(0, 1, 65), np.linspace(0, 1, 5), knots)
    magnitude = 10 ** (gain_db / 20)
    cepstrum = np.fft.irfft(np.log(magnitude), 128)  # fold to minimum phase: no delay is added
    cepstrum[1:64] *= 2
    cepstrum[65:] = 0
    return np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), 128)[:64].astype(np.float32)
