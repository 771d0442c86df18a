"""What becomes of the gain when a stream does not start fresh and well levelled."""

import numpy as np
import onnxruntime

from .layout import HOP, RATE_HZ
from .measures import si_sdr
from .runtime import enhanced

SEED = 808
REPEATS = 20  # how often the scenes run before the measured time, for the long stream
STREAMS = 20


def seconds(count: float) -> int:
    """Samples in so many seconds, in whole hops."""
    return int(count * RATE_HZ) // HOP * HOP


def leads(noisy: np.ndarray) -> dict[str, np.ndarray]:
    """What a stream may have heard before the measured scene: samples [N, any]."""
    rng = np.random.default_rng(SEED)
    streams = len(noisy)
    return {
        "from a fresh state": np.zeros((streams, 0), np.float32),
        "after 30 s of digital silence": np.zeros((streams, seconds(30)), np.float32),
        "after 5 s of white noise at full scale": rng.uniform(-1, 1, (streams, seconds(5))).astype(
            np.float32
        ),
        f"after {REPEATS * noisy.shape[1] // RATE_HZ} s of other scenes": np.concatenate(
            [np.roll(noisy, turn + 1, 0) for turn in range(REPEATS)], 1
        ),
    }


def table(model: onnxruntime.InferenceSession, noisy: np.ndarray, clean: np.ndarray) -> str:
    """Mean SI-SDR gain (dB) of evenly chosen scenes [N, T*HOP] after each lead, and levels."""
    chosen = slice(None, None, max(1, len(noisy) // STREAMS))
    noisy, clean = noisy[chosen], clean[chosen, :-HOP]
    before = si_sdr(noisy[:, :-HOP], clean)
    lines = []
    for name, lead in leads(noisy).items():
        output, _ = enhanced(model, np.concatenate([lead, noisy], 1))
        gain = si_sdr(output[:, lead.shape[1] :], clean) - before
        lines.append(f"| {name} | {gain.mean():.1f} |")
    for level_db in (-30, -15):
        output, _ = enhanced(model, noisy * np.float32(10 ** (level_db / 20)))
        lines.append(f"| {-level_db} dB quieter | {(si_sdr(output, clean) - before).mean():.1f} |")
    return "\n".join(lines)
