"""Inputs to calibrate and to compare models with, and how far apart their outputs are."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.inference.catalog import place
from agent.inference.catalog.golden import DTYPES, FILE_BYTES_MAX, arrays, golden
from agent.inference.catalog.manifest import Model, TensorSpec

Case = dict[str, NDArray[Any]]  # an array for each input, or output
CASES_MAX = 1000
SEEDED_CASES, SEED, SEEDED_ROWS, SEEDED_SIZE = 16, 20_260, 2, 16
NUMPY = {name: dtype for dtype, name in DTYPES.items()}


def found(model: Model, calibration: Path | None) -> tuple[list[Case], str]:
    """Inputs to measure ranges and errors on, and where they are from."""
    if calibration:
        paths = sorted(calibration.glob("*.npz"))[:CASES_MAX]
        if not paths:
            raise ModelError(f"{calibration}: no npz file there", "numpy.savez, one for each call")
        cases = [arrays(place.read(p, FILE_BYTES_MAX), str(p)) for p in paths]
        for path, case in zip(paths, cases, strict=True):
            _fits(model, case, str(path))
        return cases, f"of {calibration}"
    if pairs := golden(model):
        return [pair.inputs for pair in pairs], "the golden pairs of the float model"
    chance = np.random.default_rng(SEED)
    specs = model.manifest.inputs
    cases = [{s.name: _seeded(s, chance) for s in specs} for _ in range(SEEDED_CASES)]
    return cases, f"random, seed {SEED}"


def _fits(model: Model, case: Case, what: str) -> None:
    specs = {spec.name: spec for spec in model.manifest.inputs}
    if set(case) != set(specs):
        raise ModelError(
            f"{what}: has {', '.join(case)}; the model takes {', '.join(specs)}", "name them so"
        )
    for name, array in case.items():
        if DTYPES.get(array.dtype) != specs[name].dtype or array.ndim != len(specs[name].shape):
            raise ModelError(
                f"{what}: {name!r} is {array.dtype} {list(array.shape)}; the model takes "
                f"{specs[name].dtype} {specs[name].shape}",
                "write it in that form",
            )


def _seeded(spec: TensorSpec, chance: np.random.Generator) -> NDArray[Any]:
    if spec.dtype not in NUMPY:
        raise ModelError(f"input {spec.name!r} is {spec.dtype}", "give --calibration")
    open_sizes = [SEEDED_ROWS] + [SEEDED_SIZE] * len(spec.shape)
    shape = [o if s < 0 else s for s, o in zip(spec.shape, open_sizes, strict=False)]
    if spec.dtype.startswith("FP"):
        return chance.standard_normal(shape).astype(NUMPY[spec.dtype])
    return chance.integers(0, 2, shape).astype(NUMPY[spec.dtype])


def apart(expected: list[Case], got: list[Case]) -> tuple[float, float]:
    """Of the worst output: the root of the mean square of what it is off, relative; and the largest
    difference of all. Raises ModelError for outputs that are no numbers.
    """
    relative, largest = 0.0, 0.0
    for name in expected[0]:
        pairs = [(e[name], g[name]) for e, g in zip(expected, got, strict=True)]
        if any(e.dtype.kind not in "fiu" or e.shape != g.shape for e, g in pairs):
            raise ModelError(f"output {name!r} cannot be compared", "quantize another model")
        want = np.concatenate([np.ravel(e).astype(np.float64) for e, _ in pairs])
        have = np.concatenate([np.ravel(g).astype(np.float64) for _, g in pairs])
        if not (np.isfinite(want).all() and np.isfinite(have).all()):
            raise ModelError(
                f"output {name!r} has NaN or infinities on these inputs", "give --calibration"
            )
        size = float(np.sqrt(np.mean(want**2)))
        off = float(np.sqrt(np.mean((have - want) ** 2)))
        relative = max(relative, off / size if size else off)
        largest = max(largest, float(np.abs(have - want).max(initial=0.0)))
    return relative, largest
