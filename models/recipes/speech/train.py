"""Training: scenes of several stretches, one step per stretch, recurrent state carried over.

Writes `network.pt` (weights) now and then and at the end, and `train.log` (loss against step).
"""

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from .framing import analysed, synthesised
from .layout import HOP, layout, parser
from .mixtures import Mixer
from .network import PAST, Network, levelled, log_power

SEED = 4242
BATCH = 16
FRAMES = 240  # per stretch: 3.8 s
STRETCHES = 3  # per scene: 11.5 s
PEAK_RATE = 1.5e-3
WARM_UP = 200  # steps
REPORT_EVERY = 50  # batches of scenes
COMPRESSION = 0.3
RATIO_LIMIT = 1e-3  # an error 30 dB below the speech is good enough for the time-domain loss
WEIGHTS = {"time": 0.05, "magnitude": 1.0, "complex": 0.5, "speech": 0.3}


def batch(mixer: Mixer) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy and clean spectra [BATCH, T, BINS] (complex) and labels [BATCH, T] of new scenes."""
    scenes = [mixer.scene(FRAMES * STRETCHES * HOP) for _ in range(BATCH)]
    noisy, clean, speech = (
        torch.stack([torch.from_numpy(getattr(scene, part)) for scene in scenes])
        for part in ("noisy", "clean", "speech")
    )
    return analysed(noisy), analysed(clean), speech


def time_loss(output: Tensor, target: Tensor) -> Tensor:
    """Negative scale-invariant signal-to-distortion ratio in dB, over the items with speech."""
    power = target.square().sum(1)
    heard = power > 1e-3
    output, target, power = output[heard], target[heard], power[heard]
    if len(power) == 0:
        return output.sum() * 0.0
    scaled = target * ((output * target).sum(1) / power)[:, None]
    error = (output - scaled).square().sum(1)
    limited = error + RATIO_LIMIT * scaled.square().sum(1) + 1e-8
    return 10 * torch.log10(limited / (scaled.square().sum(1) + 1e-8)).mean()


def compressed(spectra: Tensor) -> tuple[Tensor, Tensor]:
    """Compressed magnitude, and the compressed spectra, of [N, T, BINS, 2] (real, imaginary)."""
    log = torch.log(spectra.square().sum(-1) + 1e-8)
    magnitude = torch.exp(COMPRESSION / 2 * log)
    return magnitude, spectra * torch.exp((COMPRESSION - 1) / 2 * log)[..., None]


def losses(
    noisy: Tensor, clean: Tensor, gains: Tensor, logits: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The parts of the loss for one stretch (complex spectra [N, T, BINS]), unweighted."""
    noisy, clean = torch.view_as_real(noisy), torch.view_as_real(clean)
    level = 1 / (noisy.square().sum(-1).mean((1, 2)).sqrt() + 1e-6)[:, None, None, None]
    output, target = noisy * (gains[..., None] * level), clean * level
    magnitude, parts = compressed(output)
    wanted_magnitude, wanted_parts = compressed(target)
    waves = (synthesised(torch.view_as_complex(spectra)) for spectra in (output, target))
    return {
        "time": time_loss(*waves),
        "magnitude": mse_loss(magnitude, wanted_magnitude),
        "complex": mse_loss(parts, wanted_parts),
        "speech": binary_cross_entropy_with_logits(logits, labels),
    }


def rate(step: int, steps: int) -> float:
    """Learning rate: a short rise, then a cosine to zero."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))


def train_scene(
    network: Network, optimiser: torch.optim.Optimizer, mixer: Mixer, rates: list[float]
) -> list[dict[str, float]]:
    """One step per stretch of a batch of scenes; returns the loss parts of each step."""
    noisy, clean, labels = batch(mixer)
    features = levelled(log_power(torch.view_as_real(noisy).transpose(-1, -2)))
    hidden, history = None, []
    for stretch, step_rate in enumerate(rates):
        first, last = stretch * FRAMES, (stretch + 1) * FRAMES
        past = features[:, first - PAST : first] if stretch else None
        gains, logits, hidden = network(features[:, first:last], past, hidden)
        hidden = hidden.detach()
        parts = losses(
            noisy[:, first:last], clean[:, first:last], gains, logits, labels[:, first:last]
        )
        optimiser.param_groups[0]["lr"] = step_rate
        optimiser.zero_grad()
        sum(WEIGHTS[name] * part for name, part in parts.items()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        history.append({name: part.item() for name, part in parts.items()})
    return history


def keep(network: Network, work: Path) -> None:
    """Write the weights to `network.pt` in one step: a reader never sees half a file."""
    temporary = work / "network.pt.tmp"
    torch.save(network.state_dict(), temporary)
    temporary.rename(work / "network.pt")


def train(work: Path, steps: int) -> None:
    """Train from scratch for `steps` steps and keep the weights in `network.pt`."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    network = Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-3)
    mixer = Mixer(work, "train", SEED)
    started = time.monotonic()
    with (work / "train.log").open("w") as log:
        for step in range(0, steps, STRETCHES):
            rates = [rate(step + stretch, steps) for stretch in range(STRETCHES)]
            history = train_scene(network, optimiser, mixer, rates)
            if step // STRETCHES % REPORT_EVERY == 0 or step + STRETCHES >= steps:
                means = {name: sum(row[name] for row in history) / STRETCHES for name in WEIGHTS}
                row = {"step": step, "seconds": time.monotonic() - started, **means}
                print(json.dumps(row), file=log, flush=True)
                keep(network, work)


def main() -> None:
    """Train the network."""
    options = parser(main.__doc__)
    options.add_argument("--steps", type=int, default=6750)
    chosen = options.parse_args()
    train(layout(chosen).work, chosen.steps)


if __name__ == "__main__":
    main()
