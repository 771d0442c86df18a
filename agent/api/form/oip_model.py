"""How the Open Inference Protocol and Triton's extensions write down what a model is and does.

Inputs and outputs that are the state of a sequence are kept here and not sent: no client sees them.
"""

from collections.abc import Iterable
from typing import TypedDict

from agent.clock import Clock
from agent.config import Domain as Settings
from agent.inference.catalog import Manifest, Model, TensorSpec
from agent.inference.domains.batches import KINDS
from agent.inference.domains.figures import ModelFigures
from agent.inference.domains.tallies import Spans, Tally

PLATFORMS = {"onnx": "onnxruntime_onnx", "speech": "holdfast_speech"}


class ModelTensor(TypedDict):
    """An input or output; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """Of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[ModelTensor]
    outputs: list[ModelTensor]


class ModelPort(TypedDict):
    """An input or output in Triton's configuration; `dims` are without the axis of batches."""

    name: str
    data_type: str
    dims: list[int]


class ModelGroup(TypedDict):
    """The processes of a model."""

    name: str
    kind: str
    count: int


class ModelConfiguration(TypedDict):
    """Of a model, in Triton's form: what there is of it here. 0 as `max_batch_size`: none."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, list[int]]]
    max_batch_size: int
    input: list[ModelPort]
    output: list[ModelPort]
    instance_group: list[ModelGroup]
    default_model_filename: str


class Duration(TypedDict):
    """So many, and the nanoseconds of all of them."""

    count: int
    ns: int


class Durations(TypedDict):
    """Where the time went: `compute_input` is the way to the run, `compute_output` the way back."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(TypedDict):
    """Runs of so many rows."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(TypedDict):
    """Of a model's name since the agent began; `last_inference` in ms since 1970, 0: none."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: Durations
    batch_stats: list[BatchStatistics]


def metadata(model: Model) -> ModelMetadata:
    """What a model is."""
    manifest = model.manifest
    inputs, outputs = _ends(manifest)
    return ModelMetadata(
        name=manifest.name,
        versions=[str(manifest.version)],
        platform=PLATFORMS[manifest.engine],
        inputs=[_tensor(one) for one in inputs],
        outputs=[_tensor(one) for one in outputs],
    )


def configuration(model: Model, settings: Settings) -> ModelConfiguration:
    """The same in Triton's form, with what its domain allows it."""
    manifest = model.manifest
    batches = bool(manifest.batching)
    inputs, outputs = _ends(manifest)
    kind = "KIND_CPU" if settings.devices[0] == "cpu" else "KIND_GPU"
    group = ModelGroup(name=manifest.name, kind=kind, count=settings.instances.max)
    return ModelConfiguration(
        name=manifest.name,
        platform=PLATFORMS[manifest.engine],
        backend="onnxruntime" if manifest.engine == "onnx" else "holdfast",
        version_policy={"specific": {"versions": [manifest.version]}},
        max_batch_size=(settings.batch_max or KINDS["onnx"].batch_max) if batches else 0,
        input=[_port(one, batches=batches) for one in inputs],
        output=[_port(one, batches=batches) for one in outputs],
        instance_group=[group],
        default_model_filename=manifest.file,
    )


def statistics(name: str, version: str, figures: ModelFigures, clock: Clock) -> ModelStatistics:
    """What became of the calls to a model."""
    tallies = figures.tallies
    busy = figures.outcomes.get("busy", 0)
    ago_s = clock.monotonic() - tallies.last_s
    last_ms = int((clock.wall() - ago_s) * 1000) if tallies.last_s else 0
    failed = _duration(tallies.failed)
    return ModelStatistics(
        name=name,
        version=version,
        last_inference=max(0, last_ms),
        inference_count=tallies.rows,
        execution_count=tallies.runs,
        inference_stats=Durations(
            success=_duration(tallies.good),
            fail=Duration(count=failed["count"] + busy, ns=failed["ns"]),
            queue=_duration(tallies.queued),
            **_spans(tallies.spans),
            cache_hit=_duration(tallies.known),
            cache_miss=_duration(tallies.unknown),
        ),
        batch_stats=[
            BatchStatistics(batch_size=rows, **_spans(spans))
            for rows, spans in sorted(tallies.by_rows.items())
        ],
    )


class _Spans(TypedDict):
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


def _spans(spans: Spans) -> _Spans:
    return _Spans(
        compute_input=_duration(spans.before),
        compute_infer=_duration(spans.run),
        compute_output=_duration(spans.after),
    )


def _duration(tally: Tally) -> Duration:
    return Duration(count=tally.count, ns=max(0, int(tally.total_s * 1e9)))


def _ends(manifest: Manifest) -> tuple[Iterable[TensorSpec], Iterable[TensorSpec]]:
    """Inputs and outputs, without those that are a sequence's state."""
    kept = {pair.input for pair in manifest.state}, {pair.output for pair in manifest.state}
    inputs = [one for one in manifest.inputs if one.name not in kept[0]]
    return inputs, [one for one in manifest.outputs if one.name not in kept[1]]


def _tensor(one: TensorSpec) -> ModelTensor:
    return ModelTensor(name=one.name, datatype=one.dtype, shape=list(one.shape))


def _port(one: TensorSpec, *, batches: bool) -> ModelPort:
    kind = "STRING" if one.dtype == "BYTES" else one.dtype
    dims = list(one.shape[1:] if batches else one.shape)
    return ModelPort(name=one.name, data_type=f"TYPE_{kind}", dims=dims)
