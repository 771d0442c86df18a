"""Noisy scenes: prompts with pauses in a room, noise, levels; and what the network should answer.

`clean` is the speech as it sounds in that room (noise is removed, reverberation is not), aligned
with `noisy` to the sample.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .layout import HOP, RATE_HZ
from .noise import read_bank, unit
from .rooms import convolved, response, tilt
from .sounds import Prompt, read_speech

LABEL_RANGE_DB = 28.0  # a frame is speech if it is less than this below the loud frames
HANGOVER = 8  # frames that still count as speech after the last loud one: 128 ms


@dataclass(frozen=True)
class Scene:
    """One recording: float32 samples (±1) and per frame whether it holds speech (0 or 1)."""

    noisy: np.ndarray
    clean: np.ndarray
    speech: np.ndarray


def labels(clean: np.ndarray) -> np.ndarray:
    """Speech (1.0) or not (0.0) per frame; frame k covers the hops k-1 and k."""
    power = np.mean(clean[: len(clean) // HOP * HOP].reshape(-1, HOP) ** 2, axis=1)
    power = power + np.concatenate([[0.0], power[:-1]])
    loud = power[power > 1e-12]
    if len(loud) == 0:
        return np.zeros(len(power), np.float32)
    active = power > max(np.percentile(loud, 95) * 10 ** (-LABEL_RANGE_DB / 10), 1e-11)
    held = np.convolve(active, np.ones(HANGOVER + 1))[: len(active)]
    return (held > 0).astype(np.float32)


class Mixer:
    """Draws scenes of one split; the same seed gives the same scenes."""

    def __init__(self, work: Path, split: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.speech, prompts = read_speech(work, split)
        self.voices: dict[str, dict[float, list[Prompt]]] = {}  # speaker -> speed -> prompts
        for prompt in prompts:
            self.voices.setdefault(prompt.speaker, {}).setdefault(prompt.speed, []).append(prompt)
        size = [sum(p.length for p in speeds[1.0]) for speeds in self.voices.values()]
        self.share = np.sqrt(size) / np.sum(np.sqrt(size))  # long voices more often, not always
        self.takes, self.kinds = read_bank(work, split)

    def dry(self, size: int, pause_s: tuple[float, float]) -> np.ndarray:
        """One speaker's prompts one after another with pauses (seconds, from-to) between them."""
        wave = np.zeros(size, np.float32)
        speeds = list(self.voices.values())[self.rng.choice(len(self.share), p=self.share)]
        own = list(speeds.values())[self.rng.integers(len(speeds))]
        position = int(self.rng.uniform(0, pause_s[1]) * RATE_HZ)
        while position < size:
            prompt = own[self.rng.integers(len(own))]
            part = self.speech[prompt.start : prompt.start + prompt.length]
            part = part[: size - position].astype(np.float32) / 32768
            wave[position : position + len(part)] = part
            position += len(part) + int(self.rng.uniform(*pause_s) * RATE_HZ)
        return wave

    def noise(self, size: int, kind: str | None = None) -> np.ndarray:
        """A stretch of the bank at RMS 1; any kind, or the one asked for. `size` <= a take."""
        fitting = [row for row, name in enumerate(self.kinds) if kind in (None, name)]
        row = fitting[self.rng.integers(len(fitting))]
        start = self.rng.integers(self.takes.shape[1] - size + 1)
        return unit(self.takes[row, start : start + size].astype(np.float32))

    def drift(self, size: int, span_db: float) -> np.ndarray:
        """A gain that moves between levels now and then, as when a door opens."""
        count = self.rng.integers(2, 5)
        knots = np.repeat(self.rng.uniform(-span_db / 2, span_db / 2, count), 2)
        places = np.sort(self.rng.uniform(0, size, 2 * count - 2))
        gain_db = np.interp(np.arange(size), np.concatenate([[0], places, [size]]), knots)
        return (10 ** (gain_db / 20)).astype(np.float32)

    def voice(self, size: int, pause_s: tuple[float, float], room: bool) -> np.ndarray:
        """Speech for a scene: dry or in a room, slightly coloured when in a room."""
        wave = self.dry(size, pause_s)
        if room:
            impulse = np.convolve(response(self.rng), tilt(self.rng, 6))
            wave = convolved(wave, impulse.astype(np.float32))
        return wave

    def scene(self, size: int) -> Scene:
        """A training scene of `size` samples with everything varied."""
        rng = self.rng
        silent = rng.random() < 0.06
        pause_s = ((0.05, 0.8), (0.3, 3.0))[int(rng.random() < 0.4)]
        clean = np.zeros(size, np.float32)
        if not silent:
            clean = self.voice(size, pause_s, room=rng.random() < 0.5)
        noise = self.noise(size)
        if rng.random() < 0.5:
            noise = noise + rng.uniform(0.1, 1.0) * self.noise(size)
        if rng.random() < 0.4:
            noise = convolved(noise, tilt(rng, 9))
        if rng.random() < 0.3:
            noise = noise * self.drift(size, 12)
        snr_db = 40.0 if rng.random() < 0.05 else rng.uniform(-5, 20)
        return levelled(clean, noise, snr_db, rng.uniform(-35, -5))

    def trial(self, size: int, kind: str, snr_db: float, room: bool) -> Scene:
        """A test scene: one kind of noise at a given ratio, a level from -32 to -14 dBFS."""
        clean = self.voice(size, (0.4, 1.6), room)
        return levelled(clean, self.noise(size, kind), snr_db, self.rng.uniform(-32, -14))


def levelled(clean: np.ndarray, noise: np.ndarray, snr_db: float, level_dbfs: float) -> Scene:
    """Mix at a ratio over the frames with speech, and set the level (dBFS RMS, peak below 1)."""
    speech = labels(clean)
    loud = np.repeat(speech, HOP) > 0
    noise = unit(noise)
    if loud.any():
        clean_rms = np.sqrt(np.mean(clean[: len(loud)][loud] ** 2))
        noise = noise * (clean_rms * 10 ** (-snr_db / 20))
    noisy = clean + noise
    gain = 10 ** (level_dbfs / 20) / (np.sqrt(np.mean(noisy**2)) + 1e-9)
    gain = min(gain, 0.98 / np.abs(noisy).max())
    return Scene((noisy * gain).astype(np.float32), (clean * gain).astype(np.float32), speech)
