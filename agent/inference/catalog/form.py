"""Whether a model's file and its manifest say the same; what one leaves open, the other says."""

from collections.abc import Sequence

from msgspec.structs import replace

from agent.errors import ModelError
from agent.inference.catalog.manifest import Manifest, TensorSpec
from agent.inference.catalog.onnx_file import Onnx, Port


def agreed(manifest: Manifest, onnx: Onnx) -> Manifest:
    """The manifest with the inputs, outputs and batching that hold. Raises ModelError."""
    if not onnx.inputs or not onnx.outputs:
        raise ModelError(
            f"{onnx.path}: has {len(onnx.inputs)} inputs and {len(onnx.outputs)} outputs; "
            "expected one of each or more",
            "export the model again",
        )
    inputs = _ports(onnx, "input", onnx.inputs, manifest.inputs)
    outputs = _ports(onnx, "output", onnx.outputs, manifest.outputs)
    _state(manifest, onnx, inputs, outputs)
    batching = _batching(manifest, onnx, [*inputs, *outputs])
    return replace(manifest, inputs=inputs, outputs=outputs, batching=batching)


def _ports(
    onnx: Onnx, kind: str, there: Sequence[Port], said: list[TensorSpec]
) -> list[TensorSpec]:
    by_name = {spec.name: spec for spec in said}
    names = [port.name for port in there]
    if said and sorted(by_name) != sorted(names):
        raise ModelError(
            f"{onnx.path}: {kind}s are {', '.join(names)}; the manifest says "
            f"{', '.join(spec.name for spec in said)}",
            f"write {kind}s as the file has them, or leave them out",
        )
    return [_port(onnx, kind, port, by_name.get(port.name)) for port in there]


def _port(onnx: Onnx, kind: str, port: Port, said: TensorSpec | None) -> TensorSpec:
    if said is None and port.shape is None:
        raise ModelError(
            f"{onnx.path}: the file does not say the shape of {kind} {port.name!r}",
            f"write it under {kind}s in model.yaml, -1 for open dimensions",
        )
    found = f"{port.dtype} {port.shape}"
    if said and (said.dtype != port.dtype or not _fits(said.shape, port.shape)):
        raise ModelError(
            f"{onnx.path}: {kind} {port.name!r} is {found}; the manifest says "
            f"{said.dtype} {said.shape}",
            f"write {kind}s as the file has them, or leave them out",
        )
    if port.shape is None and said:
        return said
    # A dimension that either of them closes is closed.
    shape = list(port.shape or [])
    if said:
        shape = [max(a, b) for a, b in zip(shape, said.shape, strict=True)]
    return TensorSpec(port.name, port.dtype, shape)


def _fits(said: list[int], there: list[int] | None) -> bool:
    """Where both say a number it is the same."""
    if there is None:
        return True
    pairs = zip(said, there, strict=False)
    return len(said) == len(there) and all(a == b or -1 in {a, b} for a, b in pairs)


def _state(
    manifest: Manifest, onnx: Onnx, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    into, out_of = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    for state in manifest.state:
        taken, given = into.get(state.input), out_of.get(state.output)
        if taken is None or given is None:
            kind, name = ("output", state.output) if taken else ("input", state.input)
            raise ModelError(
                f"{onnx.path}: there is no {kind} {name!r}, which the manifest says is state",
                f"known: {', '.join(out_of if taken else into)}",
            )
        if taken.dtype != given.dtype or not _fits(given.shape, taken.shape):
            raise ModelError(
                f"{onnx.path}: output {given.name!r} is {given.dtype} {given.shape}, and cannot "
                f"be the input {taken.name!r}, {taken.dtype} {taken.shape}",
                "name an output of the same form under state",
            )


def _batching(manifest: Manifest, onnx: Onnx, specs: list[TensorSpec]) -> bool:
    closed = next((spec for spec in specs if spec.shape[:1] != [-1]), None)
    if manifest.batching and closed:
        raise ModelError(
            f"{onnx.path}: {closed.name!r} has the shape {closed.shape}, without a batch axis in "
            "front; the manifest says batching: true",
            "export the model with an open first dimension, or say batching: false",
        )
    if manifest.batching is not None:
        return manifest.batching
    # Open dimensions of two names are two things: rows and, say, the length of a text.
    names = {port.open_names[0] for port in onnx.inputs if port.open_names} - {""}
    return closed is None and len(names) <= 1
