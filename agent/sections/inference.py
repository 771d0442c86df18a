"""The sections `domains`, `models` and `jobs`: what runs, in which limits."""

from itertools import chain
from typing import Annotated, Literal

from msgspec import Meta, field

from agent.forms import (
    BYTES_MAX,
    SECONDS_MAX,
    CpuSet,
    Device,
    ModelName,
    Portion,
    PublicKey,
    Seconds,
    Share,
)
from agent.sections.part import Part

PROBATION_S_MAX = 86_400.0


class Instances(Part, frozen=True):
    """Processes that serve: `min` always, up to `max` while calls wait; `spare` more stand by."""

    min: Annotated[int, Meta(ge=1, le=64)] = 1
    max: Annotated[int, Meta(ge=1, le=64)] = 1
    spare: Annotated[int, Meta(ge=0, le=8)] = 0


class Domain(Part, frozen=True, kw_only=True):
    """One failure boundary: child processes, each with all `models` (of one engine), and limits.

    `engine` is what its models must be made for: `onnx` (tensors) or `speech` (sound); none: what
    they are made for. The domain that hears is always `speech`.

    Of two domains the one of the more urgent `class` goes first. `devices` are tried in their
    order. `cpus` is a CPU set as Linux writes it (0-3,6; none: all), `cpu_share` the part of the
    CPU time that is the domain's when all want it (none: by class), `threads` those of each
    instance (none: all CPUs but two, shared out, and no more than `cpus`). A child above
    `memory_bytes_max` is killed, it alone. `gpu_share` is the part of the GPU's time when all want
    it.

    Up to `queue_max` calls wait (none: 256, and 2048 for speech), none longer than
    `request_timeout_s`; more are refused at once. Up to `batch_max` rows go together (none: 10, and
    64 for speech), and wait for each other up to `batch_delay_ms_max` (none: not at all, and 10 for
    live speech). A child that does not answer within
    `call_timeout_s` is killed. Restarts wait from `restart_s_min`, doubling up to `restart_s_max`;
    after `quarantine_after` deaths in `quarantine_window_s` it rests for `quarantine_s`. After a
    swap of a model the former processes stand by for `keep_previous_s`, for a quick rollback.

    Where `devices` name an accelerator and the CPU, a model whose accelerator fails goes on in its
    twin on the CPU. `cpu_twin` says when that is made: `preloaded` stands by, `at_fault` is made
    then, `off`: there is none (none: preloaded for class realtime, else at_fault). Whether the
    accelerator works again is probed after `probe_s_min`, and, while it does not, after pauses that
    double up to `probe_s_max`; after `probes_min` probes in a row that pass it is used again.
    """

    models: Annotated[list[ModelName], Meta(min_length=1)]
    engine: Literal["onnx", "speech"] | None = None
    class_: Literal["realtime", "interactive", "batch"] = field(default="interactive", name="class")
    instances: Instances = field(default_factory=Instances)
    devices: Annotated[list[Device], Meta(min_length=1)] = field(default_factory=lambda: ["cpu"])
    cpus: CpuSet | None = None
    cpu_share: Portion | None = None
    memory_bytes_max: Annotated[int, Meta(ge=64 * 1024**2, le=BYTES_MAX)] | None = None
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    gpu_memory_bytes_max: Annotated[int, Meta(ge=64 * 1024**2, le=BYTES_MAX)] | None = None
    gpu_share: Portion | None = None
    queue_max: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    batch_max: Annotated[int, Meta(ge=1, le=4096)] | None = None
    batch_delay_ms_max: Annotated[float, Meta(ge=0, le=1000)] | None = None
    start_timeout_s: Seconds = 30.0
    call_timeout_s: Seconds = 10.0
    request_timeout_s: Seconds = 30.0
    restart_s_min: Seconds = 0.1
    restart_s_max: Seconds = 30.0
    quarantine_after: Annotated[int, Meta(ge=2, le=100_000)] = 10
    quarantine_window_s: Seconds = 600.0
    quarantine_s: Seconds = 300.0
    keep_previous_s: Annotated[float, Meta(ge=0, le=SECONDS_MAX)] = 300.0
    cpu_twin: Literal["preloaded", "at_fault", "off"] | None = None
    probe_s_min: Seconds = 30.0
    probe_s_max: Seconds = 3600.0
    probes_min: Annotated[int, Meta(ge=1, le=100)] = 2

    @property
    def cpu_twin_when(self) -> Literal["preloaded", "at_fault", "off"]:
        """When a twin on the CPU is made; `off`: never, for there is no need of it, or no leave."""
        if self.devices[0] == "cpu" or "cpu" not in self.devices:
            return "off"
        return self.cpu_twin or ("preloaded" if self.class_ == "realtime" else "at_fault")

    @property
    def cpu_numbers(self) -> frozenset[int]:
        """The CPUs of `cpus`; none where that is not set."""
        spans = [part.partition("-") for part in self.cpus.split(",")] if self.cpus else []
        each = (range(int(first), int(last or first) + 1) for first, _, last in spans)
        return frozenset(chain.from_iterable(each))


class Probation(Part, frozen=True):
    """How long a version that a command activated is watched, and what takes it back.

    More than `deaths_max` of its domain's processes that died; from `calls_min` calls on, a share
    of failed ones that is `failure_share_max` above the former version's, or a p95 of what a call
    takes to compute that is above `latency_ratio_max` times the former's.
    """

    probation_s: Annotated[float, Meta(ge=0, le=PROBATION_S_MAX)] = 300.0
    deaths_max: Annotated[int, Meta(ge=0, le=1000)] = 1
    calls_min: Annotated[int, Meta(ge=1, le=256)] = 20
    failure_share_max: Share = 0.05
    latency_ratio_max: Annotated[float, Meta(ge=1, le=1000)] = 2.0


class Models(Part, frozen=True):
    """The model repository. With `signed_by` (Ed25519 keys) no model runs that none of them signed.

    Answers of models that say they are deterministic are kept, `cache_bytes_max` of them.

    Commands install new versions, also from files below `drop_path` (none: not from there). Of a
    model `versions_max` are kept: the oldest that nobody needs go. What is unpacked leaves
    `free_bytes_min` of the disk.
    """

    path: str = "models"
    signed_by: list[PublicKey] = field(default_factory=list)
    cache_bytes_max: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 16 * 1024**2
    drop_path: str | None = None
    versions_max: Annotated[int, Meta(ge=3, le=1000)] = 5
    free_bytes_min: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 256 * 1024**2
    probation: Probation = field(default_factory=Probation)


class Jobs(Part, frozen=True):
    """Durable jobs, in the store: `jobs_max` of them, in `bytes_max` of its room.

    A result is kept until it is taken, `result_keep_s` of running time at most. Work that is lost
    with its process is begun again, `attempts_max` times in all.
    """

    jobs_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    bytes_max: Annotated[int, Meta(ge=1024**2, le=BYTES_MAX)] = 256 * 1024**2
    result_keep_s: Seconds = 604_800.0
    attempts_max: Annotated[int, Meta(ge=1, le=100)] = 5
