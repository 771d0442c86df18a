"""A real small inference in a domain: its golden inputs, or zeros; silence where it hears.

It goes through the domain's queue as any call does, as one of the least urgent class, and neither
through a cache nor through a circuit breaker. A call that is not answered in time is withdrawn.

Limits  : RUNS_MAX times a domain are remembered, for WINDOW_S, and the shortest.
"""

import asyncio
import math
from collections import deque

import msgspec
import numpy as np

from agent.clock import Clock
from agent.errors import BusyError, DomainError, HoldfastError, LateError, ModelError, NotThere
from agent.health.checks.check import Check, Verdict
from agent.inference import wire
from agent.inference.admission import arrays, encoded, smallest, sounded, speech
from agent.inference.catalog import Golden, Model, golden
from agent.inference.domains.domain import Domain
from agent.inference.domains.work import Class, Result, Work

SMALL_BYTES = 1 << 20  # golden inputs above it are no small inference: zeros then
RUNS_MAX = 20
WINDOW_S = 600.0


class Ran:
    """What the inferences of one version took, which are always the same."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.best_s = math.inf  # of compute, since it is asked
        self._last = deque[tuple[float, float]](maxlen=RUNS_MAX)

    def add(self, took_s: float, now_s: float) -> None:
        """One more."""
        self.best_s = min(self.best_s, took_s)
        self._last.append((now_s, took_s))

    def last_s(self, now_s: float) -> list[float]:
        """The last ones."""
        return [took_s for at_s, took_s in self._last if at_s >= now_s - WINDOW_S]


class Probe:
    """Asks domains, and remembers how long it took."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ran: dict[str, Ran] = {}  # by domain
        self._pairs: dict[str, tuple[Model, Golden | None]] = {}  # by domain

    async def ask(self, domain: Domain, until_s: float) -> Check:
        """One inference, answered or given up at `until_s` of the clock."""
        began_s, subject = self._clock.monotonic(), domain.name

        def said(verdict: Verdict, found: str, remedy: str = "") -> Check:
            took_ms = (self._clock.monotonic() - began_s) * 1000
            expected = "an answer in time, the golden one where there is one"
            return Check(
                *("inference", subject, verdict, found, expected, round(took_ms, 3), remedy)
            )

        answered = _answered(domain)
        try:
            async with asyncio.timeout(until_s - began_s):
                model = await self._one(domain, until_s)
        except (LateError, TimeoutError):
            if _answered(domain) > answered:
                return said("warn", "it is busy: others were answered, this call was not", BUSY)
            return said("fail", "no answer in time", f"holdfast domains trace {subject}")
        except BusyError as error:
            full = domain.ready.is_set() and domain.waiting > 0
            return said("warn" if full else "fail", str(error), BUSY if full else error.hint)
        except (Unknown, NotThere) as error:  # or its version went while the call waited
            return said("warn", str(error), error.hint)
        except HoldfastError as error:
            return said("fail", str(error), error.hint or f"holdfast domains restart {subject}")
        return said("pass", f"{model.label} answered")

    def ran(self, domain: Domain) -> Ran | None:
        """What a version that serves took; None where there was no answer yet."""
        ran = self._ran.get(domain.name)
        return ran if ran and ran.model in domain.models.values() else None

    async def _one(self, domain: Domain, until_s: float) -> Model:
        """Have a model asked. Raises HoldfastError."""
        model, loaded, pair = await self._chosen(domain)
        if model.manifest.engine == "speech":
            head, body = sounded(loaded, bytes(2 * int(model.manifest.options["hop_samples"])))
        else:
            head, body = encoded(pair.inputs if pair else smallest(model, loaded))
        now_s = self._clock.monotonic()
        work = Work(
            model.manifest.name,
            msgspec.Raw(head),
            body,
            size_bytes=sum(map(len, body)),
            klass=Class.BATCH,
            now_s=now_s,
            timeout_s=max(0.0, until_s - now_s),
            label=model.label,
            key=model.label,
            once=True,
            gathers=False,
        )
        domain.submit(work)
        try:
            result = await work.done
        except asyncio.CancelledError:
            domain.cancel(work)
            raise
        _judged(model, pair, result)
        ran = self.ran(domain)
        if ran is None or ran.model != model:
            ran = self._ran[domain.name] = Ran(model)
        ran.add(work.times.ended_s - work.times.began_s, self._clock.monotonic())
        return model

    async def _chosen(self, domain: Domain) -> tuple[Model, wire.Loaded, Golden | None]:
        """The first model that there is something to ask. Raises DomainError, Unknown."""
        if not domain.ready.is_set():
            raise DomainError(f"domain {domain.name} is not ready: {domain.cause}", domain.hint)
        for name, model in domain.models.items():
            loaded = domain.loaded(name)
            if loaded is None:
                continue
            pair = await self._pair(domain, model)
            texts = any(one.dtype == "BYTES" for one in loaded.inputs)
            if pair or model.manifest.engine == "speech" or not texts:
                return model, loaded, pair
        raise Unknown(
            f"domain {domain.name}: nobody knows what its models could be asked",
            "give one of them golden inputs in model.yaml (docs/models.md)",
        )

    async def _pair(self, domain: Domain, model: Model) -> Golden | None:
        """Its first golden pair, read once. Raises ModelError."""
        kept = self._pairs.get(domain.name)
        if kept is None or kept[0] != model:
            kept = self._pairs[domain.name] = (model, await asyncio.to_thread(_first, model))
        return kept[1]


class Unknown(ModelError):
    """Nobody knows what a model could be asked."""


BUSY = "ask less of it, or raise its instances"


def _first(model: Model) -> Golden | None:
    """The first golden pair, if it is small. Raises ModelError."""
    manifest = msgspec.structs.replace(model.manifest, golden=model.manifest.golden[:1])
    pairs = golden(msgspec.structs.replace(model, manifest=manifest))
    size = sum(one.nbytes for pair in pairs for one in pair.inputs.values())
    return pairs[0] if pairs and size <= SMALL_BYTES else None


def _judged(model: Model, pair: Golden | None, result: Result) -> None:
    """Raises ModelError for an answer that is wrong, or makes no sense."""
    heard = model.manifest.engine == "speech"
    found = {"speech": speech(result)} if heard else arrays(result)
    if pair:
        pair.judge(found)
    for name, one in found.items():
        if one.dtype.kind == "f" and not np.isfinite(one).all():
            raise ModelError(f"{model.label}: output {name} is not finite", "load it again")


def _answered(domain: Domain) -> int:
    """Calls that it has answered."""
    return sum(one.outcomes.get("ok", 0) for one in domain.figures.models.values())
