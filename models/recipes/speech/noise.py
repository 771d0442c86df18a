"""Seeded noise of machine halls, offices and streets, synthesised, and a bank of it on disk.

Every generator takes a random generator and a number of samples (16 kHz) and returns float32
samples of any level; `bank` sets all of them to an RMS of 1.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.signal import butter, sosfilt

from .layout import RATE_HZ, layout, parser
from .sounds import Prompt, read_speech

SECONDS = 20
TAKES = {"train": 26, "test": 4}  # takes of every kind
SEEDS = {"train": 1001, "test": 9009}  # a test take is never heard in training
TEST_TRACK = -1  # the music track that only the test bank uses

Noise = Callable[[np.random.Generator, int], np.ndarray]


def curve(
    rng: np.random.Generator, size: int, knot_s: float, low: float, high: float
) -> np.ndarray:
    """A slowly varying curve between `low` and `high` with one random knot per `knot_s` seconds."""
    count = max(2, math.ceil(size / RATE_HZ / knot_s) + 1)
    knots = rng.uniform(low, high, count)
    return np.interp(np.arange(size), np.linspace(0, size, count), knots).astype(np.float32)


def tilted(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """Noise whose power falls with frequency to the power `slope` (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 20.0)
    return np.fft.irfft(spectrum * frequency ** (-slope / 2), size).astype(np.float32)


def band(rng: np.random.Generator, size: int, low_hz: float, high_hz: float) -> np.ndarray:
    """White noise between two frequencies, RMS about 1."""
    noise = sosfilt(
        butter(2, [low_hz, high_hz], "band", fs=RATE_HZ, output="sos"), rng.standard_normal(size)
    )
    return (noise / (np.std(noise) + 1e-9)).astype(np.float32)


def unit(wave: np.ndarray) -> np.ndarray:
    """The same wave at an RMS of 1."""
    return (wave / (np.sqrt(np.mean(wave**2)) + 1e-9)).astype(np.float32)


def harmonics(rng: np.random.Generator, base_hz: np.ndarray, falloff: float) -> np.ndarray:
    """Harmonics of a moving fundamental (Hz per sample), weaker the higher (`falloff`)."""
    phase = 2 * np.pi * np.cumsum(base_hz) / RATE_HZ
    count = int(min(40, 7600 / base_hz.max()))
    wave = np.zeros(len(base_hz))
    for order in range(1, count + 1):
        amplitude = order**-falloff * rng.uniform(0.1, 1.0)
        wave += amplitude * np.sin(order * phase + rng.uniform(0, 2 * np.pi))
    return unit(wave)


def coloured(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stationary noise of a random colour, with a slowly moving level."""
    return unit(tilted(rng, size, rng.uniform(-0.3, 2.2))) * curve(rng, size, 3.0, 0.7, 1.3)


def hum(rng: np.random.Generator, size: int) -> np.ndarray:
    """Mains hum at 50 or 60 Hz with its harmonics over a little hiss."""
    base = rng.choice([50.0, 60.0]) * (1 + 0.002 * curve(rng, size, 2.0, -1, 1))
    hiss = unit(tilted(rng, size, rng.uniform(0, 1.5)))
    return harmonics(rng, base, rng.uniform(0.2, 1.2)) + rng.uniform(0.05, 0.4) * hiss


def machine(rng: np.random.Generator, size: int) -> np.ndarray:
    """A rotating machine: harmonics that waver, and band noise that beats with the rotation."""
    base_hz = rng.uniform(20, 400)
    base = base_hz * curve(rng, size, rng.uniform(0.5, 4.0), 0.96, 1.04)
    rotation = 2 * np.pi * np.cumsum(base / rng.integers(1, 12)) / RATE_HZ
    beat = 1 + rng.uniform(0.1, 0.9) * np.sin(rotation)
    low = rng.uniform(150, 2500)
    wave = harmonics(rng, base, rng.uniform(0.3, 1.3)) * curve(rng, size, 1.0, 0.6, 1.4)
    wave += rng.uniform(0.3, 1.5) * beat * band(rng, size, low, low * rng.uniform(1.3, 2.8))
    return wave + rng.uniform(0.1, 0.6) * unit(tilted(rng, size, rng.uniform(0.3, 2)))


def fan(rng: np.random.Generator, size: int) -> np.ndarray:
    """A fan: broad flow noise, a few blade tones and a shallow beat."""
    base = rng.uniform(60, 350) * curve(rng, size, 5.0, 0.99, 1.01)
    flow = unit(tilted(rng, size, rng.uniform(0.6, 1.8)))
    flow += rng.uniform(0, 0.6) * band(rng, size, 200, rng.uniform(800, 4000))
    beat = 1 + rng.uniform(0, 0.3) * np.sin(2 * np.pi * np.cumsum(base / 5) / RATE_HZ)
    return flow * beat + rng.uniform(0, 0.5) * harmonics(rng, base, rng.uniform(0.8, 2.0))


def strike(rng: np.random.Generator) -> np.ndarray:
    """One impact: a few damped resonances behind a click."""
    size = int(rng.uniform(0.05, 0.6) * RATE_HZ)
    time_s = np.arange(size) / RATE_HZ
    wave = 0.5 * rng.standard_normal(size) * np.exp(-time_s * rng.uniform(60, 400))
    for _ in range(rng.integers(2, 7)):
        ring = np.exp(-time_s * rng.uniform(8, 120)) * rng.uniform(0.2, 1)
        wave += ring * np.sin(2 * np.pi * rng.uniform(150, 6000) * time_s)
    return wave * rng.uniform(0.2, 1.0)


def impacts(rng: np.random.Generator, size: int) -> np.ndarray:
    """A workshop: impacts and clatter, regular or not, over a floor of steady noise."""
    wave = np.zeros(size, np.float32)
    regular = rng.random() < 0.4
    pause_s = rng.uniform(0.15, 1.2)
    position = int(rng.uniform(0, pause_s) * RATE_HZ)
    hit = strike(rng)
    while position < size:
        hit = hit * rng.uniform(0.8, 1.2) if regular else strike(rng)
        part = hit[: size - position]
        wave[position : position + len(part)] += part
        position += int(RATE_HZ * (pause_s if regular else rng.exponential(pause_s))) + 1
    return unit(wave) + rng.uniform(0.1, 0.5) * unit(tilted(rng, size, rng.uniform(0.5, 1.8)))


def alarm(rng: np.random.Generator, size: int) -> np.ndarray:
    """Beeps, sweeps or a two-tone siren, with pauses, over a little noise."""
    period = int(rng.uniform(0.2, 1.5) * RATE_HZ)
    place = (np.arange(size) % period) / period
    low, high = rng.uniform(400, 1800), rng.uniform(800, 3500)
    shape = [place, (place > 0.5) * 1.0, np.zeros(size)][rng.integers(3)]
    base = low + (high - low) * shape
    gate = (place < rng.uniform(0.3, 1.0)).astype(np.float32)
    gate = np.convolve(gate, np.ones(80) / 80, "same")  # 5 ms edges
    tone = harmonics(rng, base, rng.uniform(0.8, 2.5)) * gate
    return tone + rng.uniform(0.05, 0.4) * unit(tilted(rng, size, rng.uniform(0.5, 1.8)))


def engine(rng: np.random.Generator, size: int) -> np.ndarray:
    """A combustion engine: firing pulses whose rate drifts, exhaust rumble, valve noise."""
    base = rng.uniform(12, 60) * curve(rng, size, rng.uniform(1, 5), 0.8, 1.3)
    phase = np.cumsum(base) / RATE_HZ
    pulse = np.exp(-(phase % 1.0) * rng.uniform(4, 15))
    wave = harmonics(rng, base, rng.uniform(0.6, 1.4))
    wave += rng.uniform(0.3, 1.2) * unit(pulse * band(rng, size, 300, rng.uniform(1500, 5000)))
    return wave + rng.uniform(0.3, 1.0) * unit(tilted(rng, size, 2.0))


def wind(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wind at a microphone: rumble in gusts, with hiss when it blows hard."""
    gust = curve(rng, size, 0.4, 0.05, 1.0) ** rng.uniform(1, 2.5)
    rumble = unit(tilted(rng, size, rng.uniform(1.8, 2.8)))
    return gust * rumble + rng.uniform(0.02, 0.2) * gust**2 * band(rng, size, 500, 5000)


SYNTHETIC: dict[str, Noise] = {
    "coloured": coloured,
    "hum": hum,
    "machine": machine,
    "fan": fan,
    "impacts": impacts,
    "alarm": alarm,
    "engine": engine,
    "wind": wind,
}


def babble(
    rng: np.random.Generator, size: int, speech: np.ndarray, prompts: list[Prompt]
) -> np.ndarray:
    """Four to eight voices at once (random prompts of the training speakers, run together)."""
    wave = np.zeros(size, np.float32)
    for _ in range(rng.integers(4, 9)):
        position = 0
        gain = rng.uniform(0.4, 1.0)
        while position < size:
            prompt = prompts[rng.integers(len(prompts))]
            part = speech[prompt.start : prompt.start + prompt.length][: size - position]
            wave[position : position + len(part)] += gain * part.astype(np.float32)
            position += len(part) + int(rng.uniform(0, 0.3) * RATE_HZ)
    return wave


def music(rng: np.random.Generator, size: int, tracks: np.ndarray) -> np.ndarray:
    """A stretch of one recorded track."""
    track = tracks[rng.integers(len(tracks))]
    start = rng.integers(RATE_HZ, len(track) - size)
    return track[start : start + size]


def bank(work: Path, split: str) -> None:
    """Write `noise-SPLIT.npy` (float16 [takes, samples], RMS 1) and the kind of every take."""
    rng = np.random.default_rng(SEEDS[split])
    size = SECONDS * RATE_HZ
    speech, prompts = read_speech(work, "train")
    tracks = np.load(work / "music.npy")
    tracks = tracks[TEST_TRACK:] if split == "test" else tracks[:TEST_TRACK]
    kinds = {
        **SYNTHETIC,
        "babble": lambda r, n: babble(r, n, speech, prompts),
        "music": lambda r, n: music(r, n, tracks),
    }
    takes = [
        (kind, unit(make(rng, size))) for kind, make in kinds.items() for _ in range(TAKES[split])
    ]
    np.save(work / f"noise-{split}.npy", np.stack([wave for _, wave in takes]).astype(np.float16))
    (work / f"noise-{split}.json").write_text(json.dumps([kind for kind, _ in takes]))


def read_bank(work: Path, split: str) -> tuple[np.ndarray, list[str]]:
    """The memory-mapped takes (float16 [takes, samples], RMS 1) and their kinds."""
    kinds = json.loads((work / f"noise-{split}.json").read_text())
    return np.load(work / f"noise-{split}.npy", mmap_mode="r"), kinds


def main() -> None:
    """Synthesise the noise of the training and of the test."""
    work = layout(parser(main.__doc__).parse_args()).work
    for split in TAKES:
        bank(work, split)


if __name__ == "__main__":
    main()
