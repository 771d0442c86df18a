"""The ONNX engine: any model whose inputs and outputs are tensors.

Calls to a model that batches are joined along the first axis where their other dimensions agree,
and run together; the rest, and calls to a model that does not batch, run one after the other. When
a joint run fails, its calls run again singly, so that one bad input fails alone.
"""

import time
from collections.abc import Iterable
from statistics import median
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import RequestError
from agent.inference.engines import Call, Done, Faulty
from agent.inference.engines.runs import runner
from agent.inference.engines.session import REFUSALS, opened, tensors
from agent.inference.engines.telling import telling
from agent.inference.engines.tensors import DTYPES, array, content, finite
from agent.inference.wire import Infer, Inferred, Load, Loaded, Setup, Tensor

Array = NDArray[Any]
Inputs = dict[str, Array]
PLANS_MAX = 256


class Plan(Struct):
    """What a call's head asks, found to be in the model's form."""

    infer: Infer
    outputs: list[str]
    rows: int | None


class Asked(Struct):
    """One call, decoded."""

    plan: Plan
    inputs: Inputs
    rows: int | None  # None: it cannot be joined with others


class Engine:
    """One ONNX Runtime session."""

    def __init__(self, load: Load, setup: Setup) -> None:
        began = time.perf_counter()
        session, fallback = opened(load, setup)
        self._inputs = {one.name: one for one in tensors(session.get_inputs())}
        self._outputs = {one.name: one for one in tensors(session.get_outputs())}
        self._made = runner(session, [*self._inputs.values(), *self._outputs.values()])
        self._finite = load.finite
        self._plans: dict[bytes, Plan] = {}
        self._decoder = msgspec.msgpack.Decoder(Infer)
        self._encoder = msgspec.msgpack.Encoder()
        loaded_s = time.perf_counter() - began
        self.loaded = Loaded(
            ep=session.get_providers()[0],
            load_s=loaded_s,
            warm_up_s=self._warm_up(load.warm_up),
            inputs=list(self._inputs.values()),
            outputs=list(self._outputs.values()),
            batching=self._batches() if load.batching is None else load.batching,
            fallback=fallback,
        )

    def run(self, calls: list[Call], options: Any) -> list[Done | Faulty]:
        """Answer the calls; what can be joined runs in one."""
        found: list[Done | Faulty | None] = [None] * len(calls)
        groups: dict[Any, list[tuple[int, Asked]]] = {}
        for i, call in enumerate(calls):
            try:
                asked = self._asked(call)
            except RequestError as error:
                found[i] = Faulty("refused", str(error))
                continue
            if len(calls) == 1:
                return [self._alone(asked, options)]
            groups.setdefault(self._key(i, asked), []).append((i, asked))
        for group in groups.values():
            answers = self._together([asked for _, asked in group], options)
            for (i, _), answer in zip(group, answers, strict=True):
                found[i] = answer
        return [one for one in found if one is not None]

    def _asked(self, call: Call) -> Asked:
        """A call's tensors. Raises RequestError."""
        head = bytes(call.head)
        plan = self._plans.get(head)
        if plan is None:
            plan = self._planned(head)
        inputs: Inputs = {}
        at = 0
        for tensor in plan.infer.inputs:
            end = at + tensor.size_bytes
            inputs[tensor.name] = array(tensor, call.body[at:end])
            at = end
        return Asked(plan, inputs, plan.rows)

    def _planned(self, head: bytes) -> Plan:
        """What a head asks; remembered, for the same comes again. Raises RequestError."""
        infer = self._decoder.decode(head)
        for name in infer.outputs:
            if name not in self._outputs:
                raise _unknown("output", name, self._outputs)
            if infer.outputs.count(name) > 1:
                raise RequestError(f"output {name}: expected once, found more often")
        for tensor in infer.inputs:
            self._check(tensor)
        given = [tensor.name for tensor in infer.inputs]
        for name in self._inputs:
            if given.count(name) != 1:
                raise RequestError(f"input {name}: expected once, found {given.count(name)} times")
        # Where one input has fewer rows, it is one for all of them: joined, it would be another's.
        rows = {tensor.shape[0] if tensor.shape else None for tensor in infer.inputs}
        same = rows.pop() if len(rows) == 1 else None
        plan = Plan(infer, infer.outputs or list(self._outputs), same)
        if len(self._plans) >= PLANS_MAX:
            del self._plans[next(iter(self._plans))]
        self._plans[head] = plan
        return plan

    def _check(self, tensor: Tensor) -> None:
        """Whether it is one that the model takes. Raises RequestError."""
        own = self._inputs.get(tensor.name)
        if own is None:
            raise _unknown("input", tensor.name, self._inputs)
        if tensor.dtype != own.dtype:
            raise RequestError(f"input {own.name}: is {tensor.dtype}, expected {own.dtype}")
        if len(tensor.shape) != len(own.shape) or any(
            want not in (-1, have) for want, have in zip(own.shape, tensor.shape, strict=True)
        ):
            raise RequestError(
                f"input {own.name}: has the shape {tensor.shape}, expected {own.shape} "
                "(-1: any size)"
            )

    def _key(self, i: int, asked: Asked) -> Any:
        """Calls of one key can be joined."""
        if not self.loaded.batching or asked.rows is None:
            return i
        return (*((name, a.dtype, a.shape[1:]) for name, a in asked.inputs.items()),)

    def _together(self, group: list[Asked], options: Any) -> list[Done | Faulty]:
        if len(group) == 1:
            return [self._alone(group[0], options)]
        names = list(group[0].inputs)
        joined = {name: np.concatenate([one.inputs[name] for one in group]) for name in names}
        wanted = list(dict.fromkeys(name for one in group for name in one.plan.outputs))
        try:
            outputs = dict(zip(wanted, self._made(wanted, joined, options), strict=True))
        except REFUSALS:
            return [self._alone(one, options) for one in group]
        total = sum(one.rows or 0 for one in group)
        if any(a.ndim == 0 or len(a) != total for a in outputs.values()):
            return [self._alone(one, options) for one in group]  # it does not batch after all
        answers, at = list[Done | Faulty](), 0
        for one in group:
            end = at + (one.rows or 0)
            own = {name: outputs[name][at:end] for name in one.plan.outputs}
            answers.append(self._done(one, own))
            at = end
        return answers

    def _alone(self, asked: Asked, options: Any) -> Done | Faulty:
        if options.terminate:
            return Faulty("withdrawn", "")
        wanted = asked.plan.outputs
        try:
            found = self._made(wanted, asked.inputs, options)
        except REFUSALS as error:
            if options.terminate:
                return Faulty("withdrawn", "")
            return Faulty("failed", f"ONNX Runtime: {telling(str(error))}")
        return self._done(asked, dict(zip(wanted, found, strict=True)))

    def _done(self, asked: Asked, outputs: dict[str, Array]) -> Done | Faulty:
        tensors, body = list[Tensor](), list[bytes | memoryview]()
        for name, found in outputs.items():
            if self._finite and not finite(found):
                return Faulty("failed", f"output {name} is not finite")
            as_json = name in asked.plan.infer.json or "*" in asked.plan.infer.json
            piece = content(found, as_json=as_json)
            dtype = self._outputs[name].dtype
            size = memoryview(piece).nbytes
            tensors.append(Tensor(name, dtype, list(found.shape), size, as_json))
            body.append(piece)
        size = sum(one.size_bytes for one in tensors)
        return Done(msgspec.Raw(self._encoder.encode(Inferred(tensors))), size, body)

    def _batches(self) -> bool:
        """Whether all that goes in and comes out has a free first dimension."""
        both = [*self._inputs.values(), *self._outputs.values()]
        return all(one.shape and one.shape[0] == -1 for one in both)

    def _warm_up(self, runs: int) -> float:
        """The median seconds of so many runs on zeros; 0 where the model takes no zeros."""
        took = list[float]()
        try:
            for _ in range(runs):
                began = time.perf_counter()
                self._made(list(self._outputs), _zeros(self._inputs.values()), None)
                took.append(time.perf_counter() - began)
        except REFUSALS:  # it may want what is no zero: its golden inputs decide
            return 0.0
        return median(took) if took else 0.0


def _unknown(what: str, name: str, known: Iterable[str]) -> RequestError:
    return RequestError(f"{what} {name!r} is not one of the model's: {', '.join(known)}")


def _zeros(inputs: Iterable[Tensor]) -> Inputs:
    """One row of zeros; each other free dimension is 1."""
    return {
        one.name: np.zeros([max(1, size) for size in one.shape], DTYPES[one.dtype])
        for one in inputs
    }
