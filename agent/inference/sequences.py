"""Models with a memory: what a sequence of calls leaves behind for its next one.

The agent keeps it, not the worker. So any instance may take the next call, the calls of many
sequences travel in one batch, and a worker's death costs no sequence anything. The calls of one
sequence are made one after the other.

Limits  : SEQUENCES_MAX at a time, of ALL_BYTES_MAX, each of STATE_BYTES_MAX; STEPS_MAX of one are
          made or wait for their turn; one without a call for IDLE_S is forgotten.
Format  : by model and the caller's id, the state outputs of its last call as raw tensors.
Recovery: none over a restart of the agent; a sequence that is not known must begin with its start.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from agent.clock import Clock
from agent.errors import BusyError, NotThere, RunError
from agent.inference.wire import Tensor

SEQUENCES_MAX = 4096
ALL_BYTES_MAX = 256 << 20
STATE_BYTES_MAX = 32 << 20
STEPS_MAX = 64
IDLE_S = 60.0
RETRY_S = 1.0


class Step(NamedTuple):
    """A call's place in its sequence."""

    id: str
    start: bool = False
    end: bool = False


class State(NamedTuple):
    """What a call leaves behind: tensors, named as the inputs of the next one."""

    label: str  # of the model version that left it
    tensors: list[Tensor]
    content: list[bytes]

    @property
    def size_bytes(self) -> int:
        """Of its content."""
        return sum(map(len, self.content))


class Memory:
    """One sequence."""

    def __init__(self) -> None:
        self.state: State | None = None  # none before its first call has an answer
        self.used_s = 0.0
        self.steps = 0  # that are made, or wait for their turn
        self.turn = asyncio.Lock()


class Sequences:
    """The sequences of all models, the one used longest ago first."""

    def __init__(self, clock: Clock) -> None:
        self.used_bytes = 0
        self._clock = clock
        self._memories: OrderedDict[tuple[str, str], Memory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._memories)

    @contextmanager
    def at(self, model: str, step: Step) -> Iterator[Memory]:
        """The sequence of this step, while that is made. Raises NotThere, BusyError."""
        key = (model, step.id)
        self._forget(self._clock.monotonic())
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = self._begun(model, step)
        self._memories.move_to_end(key)
        if memory.steps >= STEPS_MAX:
            raise BusyError(
                f"sequence {step.id!r} of model {model}: {memory.steps} steps wait already",
                "send the next step when an answer has come",
                RETRY_S,
            )
        memory.steps += 1
        try:
            yield memory
        finally:
            memory.steps -= 1
            memory.used_s = self._clock.monotonic()
            self._memories.move_to_end(key)
            if memory.state is None and not memory.steps:
                del self._memories[key]

    def keep(self, memory: Memory, state: State | None) -> None:
        """What a step left behind; none: the sequence is at its end. Raises RunError, BusyError.

        Then it is as before the step, which may be made again.
        """
        if state and state.size_bytes > STATE_BYTES_MAX:
            raise RunError(
                f"model {state.label}: the state of a sequence grew to {state.size_bytes} bytes",
                f"end it sooner: at most {STATE_BYTES_MAX} are kept",
            )
        before_bytes = memory.state.size_bytes if memory.state else 0
        more_bytes = (state.size_bytes if state else 0) - before_bytes
        if more_bytes > 0 and self.used_bytes + more_bytes > ALL_BYTES_MAX:
            raise self._full()
        self.used_bytes += more_bytes
        memory.state = state

    def state(self, memory: Memory, model: str, step: Step, label: str) -> State:
        """What the last step left behind. Raises NotThere."""
        if memory.state is None:
            raise _unknown(model, step)
        if memory.state.label != label:
            raise NotThere(
                f"sequence {step.id!r} was made with {memory.state.label}, {label} serves now",
                "begin it again with sequence_start",
            )
        return memory.state

    def _begun(self, model: str, step: Step) -> Memory:
        if not step.start:
            raise _unknown(model, step)
        if len(self._memories) >= SEQUENCES_MAX or self.used_bytes >= ALL_BYTES_MAX:
            raise self._full()
        return Memory()

    def _full(self) -> BusyError:
        return BusyError(
            f"{len(self._memories)} sequences of {self.used_bytes} bytes are under way",
            "end some",
            IDLE_S,
        )

    def _forget(self, now_s: float) -> None:
        while self._memories:
            key, memory = next(iter(self._memories.items()))
            if memory.steps or memory.used_s >= now_s - IDLE_S:
                return
            self.keep(memory, None)
            del self._memories[key]


def _unknown(model: str, step: Step) -> NotThere:
    return NotThere(
        f"model {model}: no sequence {step.id!r} is under way",
        f"begin it with sequence_start; after {IDLE_S:g} s without a call it is forgotten",
    )
