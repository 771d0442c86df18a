"""The way of a call: is its answer known, may its model be asked, which domain asks it.

call -> cache -> circuit breaker -> (state of its sequence) -> domain: queue, batch, instance
                      | open
                      v
                 the model's fallback, or an error that says when to try again
"""

import asyncio
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, Protocol

import msgspec

from agent.clock import Clock
from agent.errors import BusyError, CallLost, LateError, NotThere, RequestError, RunError
from agent.inference.breaker import Breaker
from agent.inference.breaker import State as BreakerState
from agent.inference.cache import CALL_BYTES_MAX, Cache
from agent.inference.catalog import Model
from agent.inference.domains.domain import Domain
from agent.inference.domains.work import Class, Result, Work
from agent.inference.sequences import STATE_BYTES_MAX, Memory, Sequences, State, Step
from agent.inference.wire import Buffer, Infer, Inferred, Tensor

log = logging.getLogger("infer")
REST_S = 60.0  # what a caller is told of a domain that rests: it does so for long


class Request(NamedTuple):
    """A call to an ONNX model, as a door has understood it."""

    model: str
    head: msgspec.Raw  # an encoded wire.Infer
    body: list[Buffer]  # the inputs, one after the other
    size_bytes: int
    rows: int = 1  # of its first input; 0: it is empty
    klass: Class | None = None  # None: as its domain
    timeout_s: float | None = None  # None: as its domain allows at most
    step: Step | None = None
    version: int | None = None  # that it insists on
    patient: bool = False  # it has no deadline, however long it takes


class Domains(Protocol):
    """Where the models are."""

    def serving(self, model: str) -> Domain | None:
        """The domain that has this model."""


class Scheduler:
    """What the doors ask."""

    def __init__(self, domains: Domains, cache: Cache, sequences: Sequences, clock: Clock) -> None:
        self.cache = cache
        self.sequences = sequences
        self._domains = domains
        self._clock = clock
        self._breakers: dict[str, tuple[str, Breaker]] = {}  # by model, of its version
        self._open_until_s: dict[str, float] = {}  # by version, of a process before this one
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Inferred)

    async def infer(self, request: Request) -> Result:
        """The answer to a call.

        Raises NotThere for a model nobody has, RequestError for a call that is not in its form,
        BusyError when it is not accepted, LateError, CallLost, RunError when it has no answer.
        """
        if request.step is not None:
            return await self._step(request)
        return await self.start(request)

    def start(self, request: Request) -> asyncio.Future[Result]:
        """The answer to come of a call without a sequence; cancelled, the call is given up.

        Raises and will raise as `infer`.
        """
        domain, model = self._found(request)
        if model.manifest.state and request.step is None:
            raise RequestError(
                f"model {model.label} has a state",
                "send sequence_id, and sequence_start with the first call",
            )
        if not model.manifest.deterministic or request.size_bytes > CALL_BYTES_MAX:
            return self._ask(domain, model, request)
        began_s = self._clock.monotonic()
        key = self.cache.key(model.label, request.head, request.body)
        known, now_s = self.cache.get(key, began_s), self._clock.monotonic()
        found = known is not None
        domain.figures.looked_up(request.model, request.rows, now_s - began_s, now_s, known=found)
        if known is not None:
            done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            done.set_result(known)
            return done
        answer = self._ask(domain, model, request)
        answer.add_done_callback(partial(self._keep, model, key))
        return answer

    def breaker(self, model: Model) -> Breaker:
        """The breaker of a version; a new version begins with a closed one."""
        name = model.manifest.name
        found = self._breakers.get(name)
        if found is None or found[0] != model.label:
            found = self._breakers[name] = (model.label, Breaker())
            if (until_s := self._open_until_s.pop(model.label, None)) is not None:
                now_s = self._clock.monotonic()
                found[1].reopen(now_s, max(0.0, until_s - now_s))
        return found[1]

    def open_breakers(self) -> dict[str, float]:
        """The versions that erred too often, and in how many seconds a call may go through."""
        now_s = self._clock.monotonic()
        before = {label: max(0.0, end_s - now_s) for label, end_s in self._open_until_s.items()}
        return before | {
            label: breaker.retry_s(now_s)
            for label, breaker in self._breakers.values()
            if breaker.state(now_s) != "closed"
        }

    def reopen(self, left_s: Mapping[str, float]) -> None:
        """Breakers that were open in a process before this one, and for how long yet."""
        now_s = self._clock.monotonic()
        self._open_until_s = {label: now_s + seconds for label, seconds in left_s.items()}

    def breaker_state(self, model: Model) -> BreakerState:
        """What the breaker of a version does now."""
        return self.breaker(model).state(self._clock.monotonic())

    def _found(self, request: Request) -> tuple[Domain, Model]:
        domain = self._domains.serving(request.model)
        if domain is None:
            raise NotThere(
                f"no domain has the model {request.model!r}",
                "name it in a domain's models, then: holdfast domains apply",
            )
        model = domain.models.get(request.model)
        if model is None and domain.models:
            raise NotThere(
                f"model {request.model} is not loaded", f"holdfast models load {request.model}"
            )
        if model is None:
            raise BusyError(f"domain {domain.name} is not ready: {domain.cause}", "try again later")
        if domain.rests:
            raise BusyError(
                f"domain {domain.name} rests: {domain.rests}", "try again later", REST_S
            )
        if model.manifest.engine != "onnx":
            raise RequestError(
                f"model {model.label} takes no tensors: its engine is {model.manifest.engine}",
                "infer is for ONNX models; holdfast models ls",
            )
        if request.version not in (None, model.manifest.version):
            raise NotThere(
                f"model {request.model}: version {model.manifest.version} is loaded, "
                f"not {request.version}",
                f"holdfast models load {request.model}/{request.version}",
            )
        return domain, model

    def _ask(self, domain: Domain, model: Model, request: Request) -> asyncio.Future[Result]:
        """Have a domain make the call, unless the breaker of its model is open."""
        now_s = self._clock.monotonic()
        breaker = self.breaker(model)
        admitted = breaker.admits(now_s)
        if admitted is None:
            try:
                domain, model, breaker, admitted = self._instead(model, breaker, now_s)
            except BusyError:
                domain.figures.counted(request.model, "busy")
                raise
            request = request._replace(model=model.manifest.name)
        loaded = domain.loaded(request.model)
        work = Work(
            request.model,
            request.head,
            request.body,
            size_bytes=request.size_bytes,
            klass=domain.klass if request.klass is None else request.klass,
            now_s=now_s,
            timeout_s=_most_s(domain, request),
            rows=request.rows if loaded is not None and loaded.batching else 1,
            key=request.version,
            label=None if request.version is None else model.label,
            once=not model.manifest.idempotent,
        )
        try:
            domain.submit(work)
        except BusyError:
            breaker.went(now_s, admitted, erred=None)
            raise
        work.done.add_done_callback(partial(self._over, domain, model, breaker, admitted, work))
        return work.done

    def _over(
        self,
        domain: Domain,
        model: Model,
        breaker: Breaker,
        admitted: int,
        work: Work,
        answer: asyncio.Future[Result],
    ) -> None:
        """A call came to its end: the breaker learns how."""
        erred: bool | None = False
        if answer.cancelled():
            domain.cancel(work)
            erred = None
        elif error := answer.exception():
            erred = True if isinstance(error, (RunError, CallLost)) else None
        now_s = self._clock.monotonic()
        if breaker.went(now_s, admitted, erred=erred):
            log.warning("the circuit breaker of %s is %s", model.label, breaker.state(now_s))

    def _keep(self, model: Model, key: bytes, answer: asyncio.Future[Result]) -> None:
        """An answer that may be given again; not a fallback's, nor a newer version's."""
        if answer.cancelled() or answer.exception():
            return
        result = answer.result()
        if result.model == model.label:
            until_s = self._clock.monotonic() + model.manifest.cache_ttl_s
            self.cache.put(key, result._replace(cached=True), until_s)

    def _instead(
        self, model: Model, breaker: Breaker, now_s: float
    ) -> tuple[Domain, Model, Breaker, int]:
        """The fallback, which takes the same inputs, if its own breaker lets a call through."""
        name = model.manifest.fallback
        other = self._domains.serving(name) if name else None
        standby = other.models.get(name) if name and other else None
        # A state is one model's own.
        stateless = standby and not (model.manifest.state or standby.manifest.state)
        if other and standby and stateless and not other.rests:
            its = self.breaker(standby)
            if (admitted := its.admits(now_s)) is not None:
                return other, standby, its, admitted
        raise BusyError(
            f"model {model.label} erred too often: its circuit breaker is open",
            "try again later; `holdfast domains trace` shows its last calls",
            breaker.retry_s(now_s),
        )

    async def _step(self, request: Request) -> Result:
        """One step of a sequence: its state goes in, and the new state stays here."""
        step = request.step
        assert step is not None
        domain, _ = self._stateful(request)
        most_s, began_s = _most_s(domain, request), self._clock.monotonic()
        with self.sequences.at(request.model, step) as memory:
            await _turn(memory, request.model, step, most_s)
            try:
                left_s = max(0.0, most_s - (self._clock.monotonic() - began_s))
                return await self._made(request._replace(timeout_s=left_s), memory, step)
            finally:
                memory.turn.release()

    async def _made(self, request: Request, memory: Memory, step: Step) -> Result:
        """A step whose turn it is."""
        domain, model = self._stateful(request)  # as it is now
        if step.start:
            self.sequences.keep(memory, None)
            state = _begun(domain, model, request)
        else:
            state = self.sequences.state(memory, request.model, step, model.label)
        result = await self._ask(domain, model, self._with(state, domain, model, request))
        result, state = self._without(result, model)
        self.sequences.keep(memory, None if step.end else state)
        return result

    def _stateful(self, request: Request) -> tuple[Domain, Model]:
        domain, model = self._found(request)
        if not model.manifest.state:
            raise RequestError(
                f"model {model.label} has no state: sequence_id means nothing to it",
                "leave sequence_id out",
            )
        return domain, model

    def _with(self, state: State, domain: Domain, model: Model, request: Request) -> Request:
        """A request that brings the state, and asks for the new one."""
        states = [pair.output for pair in model.manifest.state]
        infer = msgspec.msgpack.decode(request.head, type=Infer)
        loaded = domain.loaded(model.manifest.name)
        all_of = [one.name for one in loaded.outputs] if loaded else []
        asked = infer.outputs or [name for name in all_of if name not in states]
        if mine := set(asked) & set(states):
            raise RequestError(
                f"output {', '.join(sorted(mine))}: it is the state of the sequence, which is kept",
                "ask for the other outputs",
            )
        json = asked if "*" in infer.json else infer.json
        whole = Infer([*infer.inputs, *state.tensors], [*asked, *states], json)
        return request._replace(
            head=msgspec.Raw(self._encoder.encode(whole)),
            body=[*request.body, *state.content],
            size_bytes=request.size_bytes + state.size_bytes,
        )

    def _without(self, result: Result, model: Model) -> tuple[Result, State]:
        """The result without its last outputs; these, as the next call's inputs."""
        inputs = [pair.input for pair in model.manifest.state]
        outputs = self._decoder.decode(result.head).outputs
        shown = len(outputs) - len(inputs)
        at = sum(one.size_bytes for one in outputs[:shown])
        body = result.body[:at]
        state = State(result.model, [], [])
        for name, one in zip(inputs, outputs[shown:], strict=True):
            state.tensors.append(Tensor(name, one.dtype, one.shape, one.size_bytes))
            state.content.append(bytes(result.body[at : at + one.size_bytes]))
            at += one.size_bytes
        head = msgspec.Raw(self._encoder.encode(Inferred(outputs[:shown])))
        return result._replace(head=head, body=body), state


def _most_s(domain: Domain, request: Request) -> float:
    """How long a call may take."""
    most_s = math.inf if request.patient else domain.settings.request_timeout_s
    return most_s if request.timeout_s is None else min(request.timeout_s, most_s)


async def _turn(memory: Memory, model: str, step: Step, most_s: float) -> None:
    """Until the steps before this one are made; it is to be released. Raises LateError."""
    try:
        async with asyncio.timeout(None if math.isinf(most_s) else most_s):
            await memory.turn.acquire()
    except TimeoutError:
        raise LateError(
            f"sequence {step.id!r} of model {model}: the deadline passed before its turn came",
            "allow more time, or send the next step when an answer has come",
        ) from None


def _begun(domain: Domain, model: Model, request: Request) -> State:
    """A sequence begins with zeros, a row for each that the call has.

    Raises BusyError, RequestError.
    """
    loaded = domain.loaded(model.manifest.name)
    if loaded is None:
        raise BusyError(f"domain {domain.name} is not ready: {domain.cause}", "try again later")
    if loaded.batching and request.rows == 0:
        raise RequestError(
            "a sequence begins with as many rows as its first call has, and this one is empty",
            "send sequence_start with the first call that brings something",
        )
    inputs = {one.name: one for one in loaded.inputs}
    state = State(model.label, [], [])
    for pair in model.manifest.state:
        one = inputs[pair.input]
        shape = [max(1, size) for size in one.shape]
        if loaded.batching:
            shape[0] = request.rows
        size = ELEMENT_BYTES[one.dtype] * math.prod(shape)
        if size > STATE_BYTES_MAX:
            raise RequestError(
                f"{request.rows} rows need a state of {size} bytes, above {STATE_BYTES_MAX}",
                "send fewer rows, in more sequences",
            )
        state.tensors.append(Tensor(one.name, one.dtype, shape, size))
        state.content.append(bytes(size))
    return state


ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "UINT8", "INT8"), 1),
    **dict.fromkeys(("UINT16", "INT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("UINT32", "INT32", "FP32"), 4),
    **dict.fromkeys(("UINT64", "INT64", "FP64"), 8),
}
