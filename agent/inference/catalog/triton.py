"""Triton's config.pbtxt, read as a manifest.

What has the same meaning here is taken over; what does no harm where it is not followed is a named
warning; what would change answers, or what a model is given, is an error.
"""

from msgspec import Struct
from msgspec.structs import replace

from agent.errors import ModelError
from agent.inference.catalog.manifest import State, TensorSpec, Wishes
from agent.inference.catalog.pbtxt import Section, parse

CONFIG = "config.pbtxt"
DTYPES = {
    "TYPE_BOOL": "BOOL",
    **{
        f"TYPE_{kind}{bits}": f"{kind}{bits}"
        for kind in ("UINT", "INT")
        for bits in (8, 16, 32, 64)
    },
    **{f"TYPE_{name}": name for name in ("FP16", "FP32", "FP64", "BF16")},
    "TYPE_STRING": "BYTES",
}
DEVICES = {"KIND_GPU": ("tensorrt", "cuda"), "KIND_CPU": ("cpu",)}
# Field -> why it is not followed here, though nothing is wrong for it.
HARMLESS = {
    "optimization": "the domain's `devices` and `threads` say this",
    "metric_tags": "metrics carry the model's name and version",
    "model_metrics": "metrics are the same for all models",
    "runtime": "ONNX Runtime runs it",
}
# Field -> what it would change.
REFUSED = {
    "ensemble_scheduling": "an ensemble of models",
    "batch_input": "inputs that the server makes from the batch",
    "batch_output": "outputs that the server cuts by the batch",
    "cc_model_filenames": "a model file for each kind of GPU",
    "model_operations": "operators from a library of one's own",
    "model_repository_agents": "what the server does to the model before it loads it",
}


class Config(Struct):
    """A config.pbtxt, taken apart."""

    path: str
    file: str = "model.onnx"
    versions: list[int] | None = None  # those that serve; None: the newest
    batching: bool = False
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    state: list[State] = []
    warm_up: int | None = None
    deterministic: bool = False
    wishes: Wishes = Wishes()
    warnings: list[str] = []


def read(content: bytes, path: str, name: str) -> Config:
    """The configuration of the model `name`. Raises ModelError: file, line, field, expected."""
    fields = parse(content, path)
    config = Config(path, warnings=[])
    for field, what in REFUSED.items():
        if fields.has(field):
            raise fields.refused(field, f"asks for {what}, which there is not here", _WRITE)
    for field, why in HARMLESS.items():
        if fields.drop(field):
            config.warnings.append(f"{field} is not followed: {why}")
    _identity(fields, name)
    config.file = fields.text("default_model_filename") or config.file
    config.versions = _versions(fields, config)
    rows_max = fields.number("max_batch_size")
    config.batching = rows_max > 0
    config.inputs = [_tensor(one, config, "input") for one in fields.sections("input")]
    config.outputs = [_tensor(one, config, "output") for one in fields.sections("output")]
    _batching(fields, config, rows_max)
    _sequences(fields, config)
    _instances(fields, config)
    _parameters(fields, config)
    _rest(fields, config)
    fields.end()
    return config


_WRITE = "write a model.yaml for this version, without it"


def _identity(fields: Section, name: str) -> None:
    said = fields.text("name", name)
    if said != name:
        raise ModelError(
            f"{fields.path}: name: says {said!r}, lies in the folder of {name!r}",
            "move it to the folder of its own name",
        )
    for field, ours in (("platform", "onnxruntime_onnx"), ("backend", "onnxruntime")):
        found = fields.text(field, "") if fields.has(field) else ""
        if found not in {"", ours}:
            raise ModelError(
                f"{fields.path}: {field}: {found!r} cannot be run here, expected {ours!r}",
                "export the model as ONNX",
            )


def _versions(fields: Section, config: Config) -> list[int] | None:
    policy = fields.section("version_policy")
    if policy is None:
        return None
    if every := policy.section("all"):
        every.end()
        config.warnings.append("version_policy is not followed: one version serves, the newest")
    if latest := policy.section("latest"):
        if latest.number("num_versions", 1) > 1:
            config.warnings.append("version_policy is not followed: one version serves, the newest")
        latest.end()
    specific = policy.section("specific")
    versions = specific.numbers("versions") if specific else None
    if specific:
        specific.end()
    policy.end()
    return versions


def _tensor(fields: Section, config: Config, kind: str) -> TensorSpec:
    name = fields.text("name")
    dtype = fields.word("data_type")
    shape = fields.numbers("dims")
    if not name or dtype not in DTYPES or not shape or min(shape) < -1:
        raise ModelError(
            f"{fields.path}:{fields.line}: {kind}: expected a name, a data_type of "
            f"{', '.join(DTYPES)} and dims of -1 or more; found {name!r}, "
            f"{dtype or 'none'}, {shape}",
            "write all three",
        )
    for field, what in (
        ("reshape", "a shape that differs from the model's"),
        ("is_shape_tensor", "a tensor of shapes"),
        ("allow_ragged_batch", "rows of different lengths in a batch"),
        ("optional", "an input that may be left out"),
        ("is_non_linear_format_io", "TensorRT's own layout"),
    ):
        asks = fields.has(field) and (field == "reshape" or fields.flag(field))
        if asks:
            raise ModelError(
                f"{fields.path}:{fields.line}: {kind} {name!r}: {field} asks for {what}, "
                "which there is not here",
                _WRITE,
            )
    for field in ("format", "label_filename"):
        if fields.drop(field):
            config.warnings.append(f"{kind} {name!r}: {field} is not followed: clients know it")
    fields.end()
    rows = [-1] if config.batching else []
    return TensorSpec(name, DTYPES[dtype], rows + shape)  # type: ignore[arg-type]


def _batching(fields: Section, config: Config, rows_max: int) -> None:
    batching = fields.section("dynamic_batching")
    if config.batching:
        config.wishes = replace(config.wishes, batch_max=rows_max if batching else 1)
    if batching is None:
        return
    _delay(batching, config)
    for field, why in (
        ("preferred_batch_size", "a batch is what waits, up to the domain's batch_max"),
        ("preserve_ordering", "each request gets its own answer"),
        ("priority_levels", "the class of the domain or the request says this"),
        ("default_priority_level", "the class of the domain or the request says this"),
        ("priority_queue_policy", "the class of the domain or the request says this"),
    ):
        if batching.drop(field):
            config.warnings.append(f"dynamic_batching.{field} is not followed: {why}")
    if policy := batching.section("default_queue_policy"):
        if queue_max := policy.number("max_queue_size"):
            config.wishes = replace(config.wishes, queue_max=queue_max)
        if timeout_us := policy.number("default_timeout_microseconds"):
            config.wishes = replace(config.wishes, request_timeout_s=timeout_us / 1e6)
        if policy.word("timeout_action", "REJECT") != "REJECT":
            config.warnings.append("timeout_action is not followed: what is late is refused")
        if policy.flag("allow_timeout_override"):
            config.warnings.append("allow_timeout_override is not followed: each request may")
        policy.end()
    batching.end()


def _delay(fields: Section, config: Config) -> None:
    if delay_us := fields.number("max_queue_delay_microseconds"):
        config.wishes = replace(config.wishes, batch_delay_ms_max=delay_us / 1e3)


def _sequences(fields: Section, config: Config) -> None:
    sequences = fields.section("sequence_batching")
    if sequences is None:
        return
    if sequences.sections("control_input"):
        raise ModelError(
            f"{sequences.path}:{sequences.line}: sequence_batching.control_input: asks for inputs "
            "that the server fills with START, READY, END or CORRID, which it does not here",
            "export the model with its state as inputs and outputs, named under state",
        )
    for field in ("iterative_sequence", "generative_sequence"):
        if sequences.flag(field):
            raise sequences.refused(field, "requests that go round are not there here", _WRITE)
    for strategy in ("direct", "oldest"):
        if section := sequences.section(strategy):
            _delay(section, config)
            for field in (
                "max_candidate_sequences",
                "preferred_batch_size",
                "preserve_ordering",
                "minimum_slot_utilization",
            ):
                if section.drop(field):
                    config.warnings.append(
                        f"sequence_batching.{strategy}.{field} is not followed: "
                        "a batch is what waits, up to the domain's batch_max"
                    )
            section.end()
    if sequences.drop("max_sequence_idle_microseconds"):
        config.warnings.append(
            "sequence_batching.max_sequence_idle_microseconds is not followed: "
            "a stream's state goes with its calls"
        )
    config.state = [_state(one) for one in sequences.sections("state")]
    sequences.end()


def _state(fields: Section) -> State:
    state = State(fields.text("input_name"), fields.text("output_name"))
    fields.drop("data_type"), fields.drop("dims")  # the model file says them, and is asked
    fields.drop("use_same_buffer_for_input_output")  # how, not what
    if fields.flag("use_growable_memory"):
        raise fields.refused("", "a state that grows is not there here", _WRITE)
    for initial in fields.sections("initial_state"):
        if not initial.flag("zero_data"):
            raise initial.refused("", "a state that does not begin with zeros", _WRITE)
        initial.drop("name"), initial.drop("data_type"), initial.drop("dims")
        initial.end()
    fields.end()
    return state


def _instances(fields: Section, config: Config) -> None:
    count, devices = 0, config.wishes.devices
    for group in fields.sections("instance_group"):
        count += group.number("count", 1)
        kind = group.word("kind", "KIND_AUTO")
        if kind not in {*DEVICES, "KIND_AUTO"}:
            raise ModelError(
                f"{group.path}:{group.line}: instance_group.kind: {kind} is not known here, "
                f"expected {', '.join(DEVICES)} or KIND_AUTO",
                "name the device in the domain's settings",
            )
        devices = DEVICES.get(kind, devices)
        if group.flag("passive"):
            raise group.refused("passive", "an instance that never runs", _WRITE)
        for field in (
            "name",
            "gpus",
            "rate_limiter",
            "profile",
            "host_policy",
            "secondary_devices",
        ):
            if group.drop(field) and field != "name":
                config.warnings.append(
                    f"instance_group.{field} is not followed: the domain's settings say this"
                )
        group.end()
    config.wishes = replace(config.wishes, instances=count or None, devices=devices)


def _parameters(fields: Section, config: Config) -> None:
    for entry in fields.sections("parameters"):
        key, value = entry.text("key"), entry.section("value")
        said = value.text("string_value") if value else ""
        if value:
            value.end()
        entry.end()
        if key == "intra_op_thread_count" and said.isdecimal():
            config.wishes = replace(config.wishes, threads=int(said) or None)
        else:
            config.warnings.append(f"parameters[{key}] is not followed: {said[:80]!r}")


def _rest(fields: Section, config: Config) -> None:
    if policy := fields.section("model_transaction_policy"):
        if policy.flag("decoupled"):
            raise policy.refused("decoupled", "several answers to one request", _WRITE)
        policy.end()
    if cache := fields.section("response_cache"):
        config.deterministic = cache.flag("enable")
        cache.end()
    runs = fields.sections("model_warmup")
    if runs:
        config.warm_up = sum(max(1, one.number("count")) for one in runs)
        config.warnings.append("model_warmup: the runs are counted, their inputs are zeros")
