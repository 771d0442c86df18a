"""The exported model run as the agent runs it: ONNX Runtime, one thread, one hop per call."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from .framing import Stream
from .layout import HOP
from .network import STATE

OUTPUTS = ["clean", "speech", "state_out"]


@dataclass(frozen=True)
class Call:
    """One call of the model: what went in and came out, for N streams."""

    spectrum: np.ndarray
    state: np.ndarray
    clean: np.ndarray
    speech: np.ndarray


def session(path: Path) -> onnxruntime.InferenceSession:
    """The model on one thread that sleeps while it waits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def calls(model: onnxruntime.InferenceSession, noisy: np.ndarray, stream: Stream) -> Iterator[Call]:
    """Run N streams of samples [N, T*HOP] through the model, hop by hop, from an empty state."""
    state = np.zeros((len(noisy), STATE), np.float32)
    for start in range(0, noisy.shape[1] - HOP + 1, HOP):
        spectrum = stream.analyse(noisy[:, start : start + HOP])
        clean, speech, after = model.run(OUTPUTS, {"spectrum": spectrum, "state": state})
        yield Call(spectrum, state, clean, speech)
        state = after


def enhanced(
    model: onnxruntime.InferenceSession, noisy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Samples [N, T*HOP] -> denoised [N, (T-1)*HOP], aligned with the input; speech [N, T]."""
    stream = Stream(len(noisy))
    hops, speech = [], []
    for call in calls(model, noisy, stream):
        hops.append(stream.synthesise(call.clean))
        speech.append(call.speech)
    return np.concatenate(hops[1:], 1), np.stack(speech, 1)  # the first hop is the silence before
