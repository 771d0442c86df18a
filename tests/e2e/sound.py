"""Recordings for the tests, made of the shipped samples, and the measure of what arrived."""

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tests.outside import ROOT

SAMPLES = ROOT / "samples"
RATE_HZ = 16_000
Floats = NDArray[np.float64]


def joined(folder: Path, seed: int, seconds: float) -> Floats:
    """The samples of a folder one after the other in an order by seed, repeated to a length."""
    paths = sorted(folder.glob("*.flac"))
    order = np.random.default_rng(seed).permutation(len(paths))
    sounds = [soundfile.read(paths[i], dtype="float64")[0] for i in order]
    whole = np.concatenate(sounds)
    return np.resize(whole, int(seconds * RATE_HZ))


def record(path: Path, seed: int, seconds: float) -> tuple[Floats, Floats]:
    """Write a recording (whole or not at all); it as noisy and as clean sound, full scale 1."""
    noisy, clean = joined(SAMPLES, seed, seconds), joined(SAMPLES / "clean", seed, seconds)
    partial = path.with_suffix(".part")
    soundfile.write(partial, noisy, RATE_HZ, format="FLAC", subtype="PCM_16")
    partial.rename(path)
    return noisy, clean


def si_sdr(estimate: Floats, clean: Floats) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al., 2019), means removed."""
    estimate, clean = estimate - estimate.mean(), clean - clean.mean()
    target = clean * (estimate @ clean) / (clean @ clean)
    return float(10 * np.log10((target @ target) / np.sum((estimate - target) ** 2)))
