"""The network: denoises and finds speech, one STFT frame after another, on N streams at once.

Two forms share their weights: `Network` runs whole sequences with `nn.GRU` (training), and
`StreamingNetwork` one frame with the gates written as linear layers (export: ONNX Runtime
quantises matrix products, but no GRU). Both see a frame only after every earlier one. Digital
silence (a muted or gated microphone) is in no training scene: the running level waits for its
end, while the rest runs on, so that speech between such pauses is not taken for noise.
"""

import math

import torch
from torch import Tensor, nn

from .layout import BINS

ENCODED = 128
TRUNK = 192
PAST = 2  # encoded frames before the current one that the trunk sees
LAYERS = 2
LEVEL_MEMORY = 0.99  # per frame; the level is an average over about 100 frames (1.6 s)
FLOOR = 1e-7  # power below which a bin counts as silent (samples within ±1, window sum 256)
SILENT = math.log(FLOOR) + 2  # no bin above: less than the last of 16 bits, digital silence
TINY = 1e-6  # keeps the level of a stream that was silent from its start defined
SPREAD = 0.3  # brings the log-power features to about unit size
STATE = PAST * ENCODED + LAYERS * TRUNK + 2


def log_power(spectrum: Tensor) -> Tensor:
    """Log power of spectra [..., 2, BINS] -> [..., BINS]."""
    return torch.log(spectrum.square().sum(-2) + FLOOR)


def levelled(power: Tensor) -> Tensor:
    """Log power [N, T, BINS] less the running level of each stream, which starts empty."""
    mean = power.mean(-1)
    heard = (power.amax(-1) > SILENT).float()
    count = heard.cumsum(1)
    age = (count[:, :, None] - count[:, None, :]).tril()
    weight = (LEVEL_MEMORY**age * heard[:, None, :]).tril()
    level = ((weight @ mean[..., None]).squeeze(-1) + TINY * mean) / (weight.sum(-1) + TINY)
    return (power - level[..., None]) * SPREAD


class Network(nn.Module):
    """The form for training: whole stretches of features, with the recurrent state passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(BINS, ENCODED)
        self.join = nn.Linear((PAST + 1) * ENCODED, TRUNK)
        self.recurrent = nn.GRU(TRUNK, TRUNK, LAYERS, batch_first=True)
        self.mask = nn.Linear(TRUNK, BINS)
        self.speech = nn.Linear(TRUNK, 1)

    def forward(
        self, features: Tensor, past: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gains and speech logits of a stretch.

        features [N, T, BINS]: levelled log power. past [N, PAST, BINS]: the features just before,
        None at the start of a stream. hidden [LAYERS, N, TRUNK] or None likewise.
        Returns gains [N, T, BINS] in 0..1, speech logits [N, T], hidden.
        """
        encoded = torch.relu(self.encoder(features))
        before = encoded.new_zeros(len(features), PAST, ENCODED)
        if past is not None:
            before = torch.relu(self.encoder(past))
        line = torch.cat([before, encoded], 1)
        frames = features.shape[1]
        window = torch.cat([line[:, lag : lag + frames] for lag in range(PAST + 1)], -1)
        trunk, hidden = self.recurrent(torch.relu(self.join(window)), hidden)
        return torch.sigmoid(self.mask(trunk)), self.speech(trunk).squeeze(-1), hidden


class Gates(nn.Module):
    """One GRU layer for one frame, as two matrix products and element-wise arithmetic."""

    def __init__(self, recurrent: nn.GRU, layer: int) -> None:
        super().__init__()
        self.given = nn.Linear(TRUNK, 3 * TRUNK)
        self.held = nn.Linear(TRUNK, 3 * TRUNK)
        for linear, side in ((self.given, "ih"), (self.held, "hh")):
            linear.weight = getattr(recurrent, f"weight_{side}_l{layer}")
            linear.bias = getattr(recurrent, f"bias_{side}_l{layer}")

    def forward(self, value: Tensor, hidden: Tensor) -> Tensor:
        """The next hidden vector; all [N, TRUNK]."""
        given_reset, given_keep, given_new = self.given(value).split(TRUNK, -1)
        held_reset, held_keep, held_new = self.held(hidden).split(TRUNK, -1)
        reset = torch.sigmoid(given_reset + held_reset)
        keep = torch.sigmoid(given_keep + held_keep)
        new = torch.tanh(given_new + reset * held_new)
        return new + keep * (hidden - new)


class StreamingNetwork(nn.Module):
    """The form that ships: one frame per call, all memory in one state vector."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.join = network.encoder, network.join
        self.first, self.second = Gates(network.recurrent, 0), Gates(network.recurrent, 1)
        self.mask, self.speech = network.mask, network.speech

    def forward(self, spectrum: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One frame: spectrum [N, 2, BINS], state [N, STATE] -> clean, speech [N], state_out.

        The state holds the encoded past frames (oldest first), both hidden vectors, and the sum
        and weight of the running level; zeros are the start of a stream.
        """
        past, first, second, total, weight = state.split([PAST * ENCODED, TRUNK, TRUNK, 1, 1], -1)
        power = log_power(spectrum)
        mean = power.mean(-1, keepdim=True)
        heard = (power.amax(-1, keepdim=True) > SILENT).float()
        total = total + heard * (mean - (1 - LEVEL_MEMORY) * total)
        weight = weight + heard * (1 - (1 - LEVEL_MEMORY) * weight)
        features = (power - (total + TINY * mean) / (weight + TINY)) * SPREAD
        # ReLU after the joining, not before: ONNX Runtime would fuse it into a product that it
        # then leaves in FP32.
        window = torch.cat([past, self.encoder(features)], -1)
        value = torch.relu(self.join(torch.relu(window)))
        first = self.first(value, first)
        second = self.second(first, second)
        clean = spectrum * torch.sigmoid(self.mask(second)).unsqueeze(1)
        speech = torch.sigmoid(self.speech(second)).squeeze(-1)
        return clean, speech, torch.cat([window[:, ENCODED:], first, second, total, weight], -1)
