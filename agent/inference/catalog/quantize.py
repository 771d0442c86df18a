"""A new version of a model with INT8 weights: `python -P -m agent.inference.catalog.quantize …`.

    static    convolutions and Gemm: weights S8 per channel, activations U8 by measured ranges
    dynamic   MatMul (transformers): weights S8 per channel, activations measured at each run

Each is ten times slower than FP32, or twice as slow, where the other belongs. The version's golden
pairs are what the float model answers, and its tolerance what was measured, with room: on another
kind of processor INT8 sums differ a little.

Limits  : models without external data, below 2 GiB; 1,000 inputs.
Recovery: the version is made in a folder of its own beside the models, verified there as any other
          one, and renamed into its place: it is there as a whole or not at all. What is left of a
          run that was killed is `.quantize-*`, and may be removed.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import yaml
from msgspec import Struct

from agent.errors import ModelError
from agent.inference.catalog import cases, onnx_file, place
from agent.inference.catalog.cases import Case
from agent.inference.catalog.catalog import Catalog
from agent.inference.catalog.golden import golden
from agent.inference.catalog.manifest import MANIFEST, MANIFEST_BYTES_MAX, Manifest, Model

Method = Literal["static", "dynamic"]
STATIC_OPS, DYNAMIC_OPS = ["Conv", "Gemm", "MatMul"], ["MatMul", "Gemm"]
GOLDEN_MAX = 4  # pairs that the new version gets
ROOM = 2.0  # of the tolerance, over the largest difference that was measured
PAIRS, PAIR_S = 15, 0.05  # of the two models, for the ratio of their speeds
FILE = "model.onnx"


class Wish(Struct, frozen=True):
    """How it is to be done."""

    method: Method | None = None  # None: by what the model has
    calibration: Path | None = None  # a folder of npz files; None: golden pairs, or random
    error_max: float = 0.1  # relative, root of the mean square


class Report(Struct):
    """What was made, and how it compares with the model it was made of."""

    model: str
    of: str
    method: str
    folder: str
    size_ratio: float  # new size over old
    speed_ratio: float  # how many times as fast, median of pairs
    speed_spread: tuple[float, float]  # the quartiles
    error_rms: float  # relative to the float outputs, root of the mean square; the worst output's
    error_max: float  # largest absolute difference
    atol: float
    cases: int
    inputs: str  # where the inputs came from


def quantize(root: Path, which: str, to: int, wish: Wish) -> Report:
    """Make `<name>/<to>` of `<name>/<version>`. Raises ModelError; then nothing was written."""
    _needs_onnx()
    name, _, version = which.partition("/")
    if not version.isdecimal():
        raise ModelError(f"{which!r} is no version of a model", "write NAME/VERSION")
    model = Catalog(root).verified(name, int(version))
    target = root / name / str(to)
    if target.exists() or target.is_symlink():
        raise ModelError(f"{target}: is there already", "name a version that is not there")
    if model.manifest.external:
        raise ModelError(
            f"{model.path}: its weights lie in other files, which is not done here",
            "quantize it with onnxruntime.quantization and write its model.yaml",
        )
    inputs, source = cases.found(model, wish.calibration)
    if source.startswith("random"):
        say("WARNING: random inputs are unlike real ones: before you use it, give --calibration")
    method = _method(model, wish.method)
    say(f"{model.label}: {method}, {len(inputs)} inputs, {source}")
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=root) as work:
        folder = Path(work) / name / str(to)
        folder.mkdir(parents=True)
        _write(model, folder / FILE, Path(work), method, inputs)
        report, expected = _measured(model, folder / FILE, inputs, wish.error_max)
        report = msgspec.structs.replace(report, method=method, inputs=source, folder=str(target))
        _describe(model, folder, to, report, list(zip(inputs, expected, strict=True)))
        made = _published(Path(work), name, to, target)
    return msgspec.structs.replace(report, model=made.label)


def say(text: str) -> None:
    """Progress, for people: standard output is the document's."""
    print(text, file=sys.stderr, flush=True)


def _needs_onnx() -> None:
    missing = [p for p in ("onnx", "onnxruntime") if importlib.util.find_spec(p) is None]
    if missing:
        raise ModelError(
            f"quantizing needs {' and '.join(missing)}, which a device does not have",
            "pip install 'holdfast[models]', on the machine where models are made",
        )


def _method(model: Model, wish: Method | None) -> Method:
    """How this model is quantized. Raises ModelError if that would change nothing."""
    there = {operator.name for operator in onnx_file.read(model.path).operators}
    method = wish or ("static" if "Conv" in there or "MatMul" not in there else "dynamic")
    gains = STATIC_OPS if method == "static" else DYNAMIC_OPS
    if not there & set(gains):
        raise ModelError(
            f"{model.path}: {method} quantization is for {', '.join(gains)}, and there is none",
            "take --static" if there & set(STATIC_OPS) else "leave it as it is",
        )
    return method


def _write(model: Model, path: Path, work: Path, method: Method, inputs: list[Case]) -> None:
    """The quantized file. Raises ModelError for what the tool makes of the model."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = work / "prepared.onnx"
    weights = {"weight_type": quantization.QuantType.QInt8, "per_channel": True}
    # 7 bits in weights: with 8, sums of U8S8 overflow on x86 without VNNI.
    weights["reduce_range"] = True
    try:
        # Symbolic shape inference needs sympy and fails on some operators; the plain one does.
        quant_pre_process(str(model.path), str(prepared), skip_symbolic_shape=True)
        if method == "dynamic":
            quantization.quantize_dynamic(
                prepared, path, op_types_to_quantize=DYNAMIC_OPS, **weights
            )
            return
        stateful = bool(model.manifest.state) or model.manifest.engine == "speech"
        quantization.quantize_static(
            prepared,
            path,
            _reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            # A state that is rounded at each step drifts, and gains nothing.
            op_types_to_quantize=STATIC_OPS if stateful else None,
            activation_type=quantization.QuantType.QUInt8,  # S8S8 halves the speed on x86
            calibrate_method=quantization.CalibrationMethod.MinMax,
            **weights,
        )
    except Exception as error:  # whatever the tool says of a model is its answer about the model
        raise ModelError(
            f"{model.path}: onnxruntime.quantization refuses it: {error}", "take the other method"
        ) from error


def _reader(inputs: list[Case]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The cases, one after the other."""

        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> Case | None:
            """The inputs of the next call, None at the end."""
            return next(self._left, None)

    return Reader()


def _measured(
    model: Model, path: Path, inputs: list[Case], error_max: float
) -> tuple[Report, list[Case]]:
    """How the new file compares; what the float model answers. Raises ModelError if too badly."""
    before, after = _session(model.path), _session(path)
    expected = [_run(before, case) for case in inputs]
    error_rms, largest = cases.apart(expected, [_run(after, case) for case in inputs])
    if error_rms > error_max:
        raise ModelError(
            f"{model.label}: INT8 is off by {error_rms:.1%} of the outputs (root of the mean "
            f"square), expected {error_max:.1%} at most; nothing was written",
            "calibrate on real inputs (--calibration), or take the other method",
        )
    ratios = [_ratio(before, after, inputs[0]) for _ in range(PAIRS)]
    low, _, high = statistics.quantiles(ratios, n=4)
    report = Report(
        model="",
        of=model.label,
        method="",
        folder="",
        size_ratio=path.stat().st_size / model.path.stat().st_size,
        speed_ratio=statistics.median(ratios),
        speed_spread=(low, high),
        error_rms=error_rms,
        error_max=largest,
        atol=ROOM * largest,
        cases=len(inputs),
        inputs="",
    )
    return report, expected


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, case: Case) -> Case:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, case), strict=True))


def _ratio(before: Any, after: Any, case: Case) -> float:
    """How many times as fast the second is; in turn, so that both meet the same machine."""
    spent_s, calls, end_s = [0.0, 0.0], 0, time.perf_counter() + 2 * PAIR_S
    while calls < 3 or time.perf_counter() < end_s:
        for i, session in enumerate((before, after)):
            began_s = time.perf_counter()
            session.run(None, case)
            spent_s[i] += time.perf_counter() - began_s
        calls += 1
    return spent_s[0] / spent_s[1]


def _describe(
    model: Model, folder: Path, to: int, report: Report, pairs: list[tuple[Case, Case]]
) -> None:
    """The golden files and the model.yaml; what the old one says for people stays."""
    (folder / "golden").mkdir()
    listed = []
    for i, (inputs, outputs) in enumerate(pairs[:GOLDEN_MAX], 1):
        pair: dict[str, str] = {}
        for key, kind, named in (("inputs", "in", inputs), ("outputs", "out", outputs)):
            path = folder / f"golden/{i}.{kind}.npz"
            np.savez_compressed(path, **named)  # type: ignore[arg-type]
            pair |= {key: f"golden/{path.name}", f"{key}_sha256": place.digest(path)[0]}
        listed.append(pair)
    sha256, size_bytes = place.digest(folder / FILE)
    # Without the old one's digest, golden pairs and signature: they are of another file.
    said = {k: v for k, v in _said(model).items() if k not in {"signature", "latency_ms_max"}}
    said |= {"version": to, "file": FILE, "sha256": sha256, "size_bytes": size_bytes}
    said |= {"golden": listed, "tolerance": {"rtol": 0.0, "atol": report.atol}}
    keys = ("of", "method", "inputs", "cases", "error_rms", "error_max", "speed_ratio")
    measured = msgspec.to_builtins(report)
    said["quantized"] = {key: measured[key] for key in keys}
    (folder / MANIFEST).write_text(yaml.safe_dump(said, sort_keys=False, width=100))


def _said(model: Model) -> dict[str, Any]:
    """The old model.yaml, or what is known of a model that has none."""
    path = model.folder / MANIFEST
    if path.exists():
        content = place.read(path, MANIFEST_BYTES_MAX)
        return dict(yaml.safe_load(content))  # it was verified
    manifest = msgspec.to_builtins(model.manifest)
    defaults = msgspec.to_builtins(Manifest("", 1, "", "", 1))
    return {k: v for k, v in manifest.items() if k == "name" or v != defaults[k]}


def _published(work: Path, name: str, version: int, target: Path) -> Model:
    """Checked like any other version, then put in its place in one step."""
    catalog, folder = Catalog(work), work / name / str(version)
    made = catalog.verified(name, version)
    catalog.check(made, "cpu")
    golden(made)
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    try:
        folder.rename(target)
    except OSError as error:
        raise ModelError(
            f"{target}: cannot be put there: {error.strerror or error}", "see what is there"
        ) from error
    _sync(target.parent)
    return made


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent.inference.catalog.quantize")
    parser.add_argument("root", type=Path)
    parser.add_argument("which")
    parser.add_argument("--to", type=int, required=True)
    parser.add_argument("--method", choices=("static", "dynamic"))
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--error-max", type=float, default=Wish().error_max)
    return parser


def main() -> int:
    """Make one version and print the report as JSON; the exit code."""
    asked = _options().parse_args()
    wish = Wish(asked.method, asked.calibration, asked.error_max)
    try:
        report = quantize(asked.root, asked.which, asked.to, wish)
    except ModelError as error:
        return error.told()
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
