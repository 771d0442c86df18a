"""Figures of merit: how much cleaner, and how well speech is told from noise."""

import numpy as np
from scipy.stats import rankdata


def si_sdr(output: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Scale-invariant signal-to-distortion ratio in dB of every row [N, samples] -> [N]."""
    output = output - output.mean(1, keepdims=True)
    target = target - target.mean(1, keepdims=True)
    scale = np.sum(output * target, 1) / np.sum(target**2, 1)
    wanted = scale[:, None] * target
    return 10 * np.log10(np.sum(wanted**2, 1) / np.sum((output - wanted) ** 2, 1))


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a speech frame scores above a frame without speech."""
    positive = labels > 0.5
    ranks = rankdata(scores)
    count, rest = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def attenuation_db(output: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """How far the output lies below the input, dB, of every row [N, samples] -> [N]."""
    return 10 * np.log10(np.mean(noisy**2, 1) / (np.mean(output**2, 1) + 1e-12))
