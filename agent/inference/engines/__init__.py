"""What runs in a worker: one engine for each kind of model.

An engine is built from a `wire.Load` and answers batches of calls. It imports ONNX Runtime or
whatever else runs its models; the agent itself never does.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from agent.inference.wire import Buffer, Fault, Load, Loaded, Setup


class Call(NamedTuple):
    """One call, as an engine gets it: its head, still encoded, and its body."""

    head: msgspec.Raw
    body: memoryview


class Done(NamedTuple):
    """The answer to one call: its head, encoded, and how long its body is.

    `body` are the buffers; an engine whose answers lie one after the other in one buffer gives that
    with the first of them.
    """

    head: msgspec.Raw
    size_bytes: int
    body: Sequence[Buffer]


class Faulty(NamedTuple):
    """No answer to one call, and why."""

    fault: Fault
    message: str


class Engine(Protocol):
    """One model, loaded."""

    loaded: Loaded

    def __init__(self, load: Load, setup: Setup) -> None:
        """Load it. Raises ModelError."""

    def run(self, calls: list[Call], options: Any) -> list[Done | Faulty]:
        """Answer the calls, in their order.

        `options` are ONNX Runtime's RunOptions: from another thread they end a run at once.
        """


def engine(kind: str) -> type[Engine]:
    """The class of engines for models of this kind; only what is asked for is imported."""
    if kind == "speech":
        from agent.inference.engines.hearing import Engine as Speech

        return Speech
    if kind == "onnx":
        from agent.inference.engines.onnx import Engine as Onnx

        return Onnx
    raise LookupError(kind)
