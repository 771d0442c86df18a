"""What the doors show of the domains and of their models: forms of documents.

The whole state has them too (agent/views.py makes them).
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from agent.inference.breaker import State as BreakerState

Urgency = Literal["realtime", "interactive", "batch"]


class InstanceShown(Struct, frozen=True):
    """A process of a domain that serves or stands by, and the calls that it has."""

    pid: int | None
    calls: int


class FallShown(Struct, frozen=True):
    """A model that its accelerator failed, and that runs on the CPU since `age_s`.

    `fault` is the class of the fault, `cause` what was said of it. `cost_ratio`: how many times as
    long a row takes now (null: not measured). `probe_s` is the time until the accelerator is tried
    again, `passes` how many of the `passes_min` probes in a row have passed, `refusal` why the last
    one failed.
    """

    fault: str
    cause: str
    age_s: float
    cost_ratio: float | None
    probe_s: float
    passes: int
    passes_min: int
    refusal: str


class DomainShown(Struct, frozen=True, rename={"klass": "class"}):
    """A domain. `cause` says why it is not ready, `rests` why it takes no calls though it is, and
    `waiting` how many are in its queue.

    `restarts` are processes that took the place of others; a domain is `quarantined` while it rests
    because it died again and again. `ep` is the execution provider in use ("": none). `fallen` are
    the models that its accelerator failed; `cpu_twin` is what stands by, or serves, for them (null:
    there is none now).
    """

    ready: bool
    cause: str
    klass: Urgency
    ep: str
    pid: int | None
    instances: list[InstanceShown]
    waiting: int
    restarts: int
    quarantined: bool
    model: str
    fallen: dict[str, FallShown] = {}
    cpu_twin: Literal["ready", "starting"] | None = None
    rests: str = ""


class ModelShown(Struct, frozen=True, kw_only=True):
    """A model of a domain; one that is not `loaded` has nothing more to tell.

    `ready`: it is answered now, on `ep`. `previous` is the version that a rollback goes back to,
    `instead_of` why the version that should serve does not. Only those of the
    engine `onnx` take tensors.
    """

    domain: str
    ready: bool
    loaded: bool
    engine: str | UnsetType = UNSET
    version: int | UnsetType = UNSET
    previous: int | UnsetType | None = UNSET
    sha256: str | UnsetType = UNSET
    size_bytes: int | UnsetType = UNSET
    ep: str | UnsetType | None = UNSET
    load_s: float | UnsetType | None = UNSET
    breaker: BreakerState | UnsetType = UNSET
    warnings: list[str] | UnsetType = UNSET
    instead_of: str | UnsetType | None = UNSET


class TraceShown(Struct, frozen=True, rename={"klass": "class"}):
    """The way of one call: what took how long, in milliseconds; null: it did not come to that."""

    id: int
    model: str
    rows: int
    batched: int
    tries: int
    klass: Urgency
    pid: int
    fault: str | None
    queued_ms: float | None
    sent_ms: float | None
    taken_apart_ms: float | None
    computed_ms: float | None
    returned_ms: float | None
    total_ms: float | None
