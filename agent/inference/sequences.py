"""Models with a memory: what a sequence of calls leaves behind for its next one.

The agent keeps it, not the worker. So any instance may take the next call, the calls of many
sequences travel in one batch, and a worker's death costs no sequence anything. The calls of one
sequence are made one after the other.

Limits  : SEQUENCES_MAX at a time; one without a call for IDLE_S is forgotten.
Format  : by model and the caller's id, the state outputs of its last call as raw tensors.
Recovery: none over a restart of the agent; a sequence that is not known must begin with its start.
"""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from agent.clock import Clock
from agent.errors import BusyError, NotThere
from agent.inference.wire import Tensor

SEQUENCES_MAX = 4096
IDLE_S = 60.0


class Step(NamedTuple):
    """A call's place in its sequence."""

    id: str
    start: bool = False
    end: bool = False


class Memory:
    """What a sequence remembers: its tensors, named as the inputs that they will be."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.content: list[bytes] = []
        self.used_s = 0.0
        self.turn = asyncio.Lock()


class Sequences:
    """The sequences of all models, the one used longest ago first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: OrderedDict[tuple[str, str], Memory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def at(self, model: str, step: Step) -> Memory:
        """The state before this step. Raises NotThere, BusyError."""
        key, now_s = (model, step.id), self._clock.monotonic()
        self._forget(now_s)
        state = self._states.get(key)
        if state is None or step.start:
            if not step.start:
                raise NotThere(
                    f"model {model}: no sequence {step.id!r} is under way",
                    "begin it with sequence_start; after "
                    f"{IDLE_S:g} s without a call it is forgotten",
                )
            if len(self._states) >= SEQUENCES_MAX and key not in self._states:
                raise BusyError(f"{SEQUENCES_MAX} sequences are under way", "end some", IDLE_S)
            state = state or Memory()
        state.used_s = now_s
        self._states[key] = state
        self._states.move_to_end(key)
        return state

    def end(self, model: str, step: Step) -> None:
        """It was the last step."""
        self._states.pop((model, step.id), None)

    def _forget(self, now_s: float) -> None:
        while self._states:
            key, state = next(iter(self._states.items()))
            if state.used_s >= now_s - IDLE_S or state.turn.locked():
                return
            del self._states[key]
