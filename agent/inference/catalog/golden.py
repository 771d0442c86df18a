"""Golden pairs: inputs whose outputs are known, and the verdict on what a model made of them.

Limits  : a file has ARRAYS_BYTES_MAX in all when unpacked and ARRAYS_MAX arrays; what a file says
          of itself is checked before anything of that size is made.
Format  : NumPy's npz, one array for each input or output, by its name; no Python objects.
"""

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.inference.catalog import place
from agent.inference.catalog.manifest import Model, TensorSpec, Tolerance
from agent.inference.engines.tensors import BF16, widened

Array = NDArray[Any]
FILE_BYTES_MAX = ARRAYS_BYTES_MAX = 64 * 1024**2
ARRAYS_MAX = 256
DTYPES = {
    **{np.dtype(f"{kind}{bits}"): f"{kind.upper()}{bits}"
       for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{np.dtype(f"float{bits}"): f"FP{bits}" for bits in (16, 32, 64)},
    np.dtype(bool): "BOOL",
    BF16: "BF16",
}  # fmt: skip
_AGAIN = "make the golden files again"


class Golden(Struct, frozen=True):
    """One pair of a model."""

    label: str  # of the model and the pair, for messages
    inputs: dict[str, Array]
    expected: dict[str, Array]
    tolerance: Tolerance

    def judge(self, outputs: Mapping[str, Array]) -> None:
        """Whether these are the outputs. Raises ModelError: output, worst element, tolerance."""
        for name, expected in self.expected.items():
            if name not in outputs:
                raise self._wrong(name, f"is not there, only {', '.join(sorted(outputs))}")
            self._judge(name, np.asarray(outputs[name]), expected)

    def _judge(self, name: str, got: Array, expected: Array) -> None:
        if got.dtype.kind in "SUO" and expected.dtype.kind in "SU":
            got = got.astype(expected.dtype.kind)
        elif got.dtype != expected.dtype:
            raise self._wrong(name, f"is {got.dtype}, expected {expected.dtype}")
        if got.shape != expected.shape:
            raise self._wrong(name, f"has the shape {list(got.shape)}, not {list(expected.shape)}")
        if got.dtype == BF16:
            got, expected = widened(got), widened(expected)
        for what, array in (("is", got), ("should be", expected)):
            strange = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(1, bool)
            if strange.any():
                at, count = _index(strange), int(strange.sum())
                raise self._wrong(
                    name,
                    f"element {list(at)} {what} {array[at]}; "
                    f"{count:,} of {array.size:,} are no numbers",
                )
        if got.dtype.kind in "SUb":
            self._equal(name, got, expected)
        else:
            self._close(name, got.astype(np.float64), expected.astype(np.float64))

    def _equal(self, name: str, got: Array, expected: Array) -> None:
        wrong = got != expected
        if wrong.any():
            at = _index(wrong)
            raise self._wrong(
                name,
                f"element {list(at)} is {got[at]!r}, expected {expected[at]!r}; "
                f"{int(wrong.sum()):,} of {got.size:,} differ",
            )

    def _close(self, name: str, got: Array, expected: Array) -> None:
        rtol, atol = self.tolerance.rtol, self.tolerance.atol
        off = np.abs(got - expected)
        excess = off - (atol + rtol * np.abs(expected))
        wrong = excess > 0
        if wrong.any():
            at = _index(excess == excess.max())
            allowed = atol + rtol * abs(float(expected[at]))
            raise self._wrong(
                name,
                f"element {list(at)} is {got[at]:.6g}, expected {expected[at]:.6g}: off by "
                f"{off[at]:.3g}, tolerance {allowed:.3g} (atol {atol:g} + rtol {rtol:g} * "
                f"|expected|); {int(wrong.sum()):,} of {got.size:,} are out",
            )

    def _wrong(self, name: str, what: str) -> ModelError:
        return ModelError(
            f"{self.label}: output {name!r} {what}",
            "the model does not do here what it did where it was made: see the device, the "
            "precision and the version; or widen `tolerance` in model.yaml",
        )


def golden(model: Model) -> list[Golden]:
    """The golden pairs of a verified model, in order. Raises ModelError."""
    manifest, found = model.manifest, []
    for i, pair in enumerate(manifest.golden):
        label = f"{model.label}: golden[{i}]"
        inputs = _loaded(model.folder, pair.inputs, pair.inputs_sha256, f"{label}.inputs")
        expected = _loaded(model.folder, pair.outputs, pair.outputs_sha256, f"{label}.outputs")
        _named(f"{label}: {pair.inputs}", inputs, manifest.inputs, all_of_them=True)
        _named(f"{label}: {pair.outputs}", expected, manifest.outputs, all_of_them=False)
        found.append(Golden(label, inputs, expected, manifest.tolerance))
    return found


def arrays(content: bytes, what: str) -> dict[str, Array]:
    """The arrays of an npz file that a stranger made. Raises ModelError, beginning with `what`."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = file.infolist()
            size_bytes = sum(member.file_size for member in members)
            if len(members) > ARRAYS_MAX or size_bytes > ARRAYS_BYTES_MAX:
                raise ModelError(
                    f"{what}: {len(members):,} arrays, {size_bytes:,} bytes when unpacked; "
                    f"expected {ARRAYS_MAX} and {ARRAYS_BYTES_MAX:,} at most",
                    "take fewer rows: a golden pair shows that the model works, not how well",
                )
            return {_stem(member): _array(file, member, what) for member in members}
    except _BROKEN as error:
        raise ModelError(
            f"{what}: not a whole npz file: {error}", f"{_AGAIN} with numpy.savez"
        ) from error


# What zipfile and NumPy say of files that are not theirs, or not whole.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, KeyError),
    *(SyntaxError, NotImplementedError, RuntimeError, OverflowError, UnicodeError, MemoryError),
)


def _stem(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> Array:
    with file.open(member) as stream:
        content = io.BytesIO(stream.read(member.file_size))
    version = np.lib.format.read_magic(content)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(f"npy version {version}")
    shape, _, dtype = header(content)
    room_bytes = len(content.getbuffer()) - content.tell()
    if dtype.hasobject or dtype.fields or math.prod(shape) * dtype.itemsize != room_bytes:
        raise ModelError(
            f"{what}: {member.filename}: says {dtype} {list(shape)} and has {room_bytes:,} bytes; "
            "expected an array of plain numbers or texts, whole",
            _AGAIN,
        )
    content.seek(0)
    found: Array = np.lib.format.read_array(content, allow_pickle=False)
    return found


def _loaded(folder: Path, name: str, sha256: str, what: str) -> dict[str, Array]:
    path = place.inside(folder, name, what)
    content = place.read(path, FILE_BYTES_MAX)
    place.same(path, what, hashlib.sha256(content).hexdigest(), sha256)
    return arrays(content, str(path))


def _named(
    what: str, found: dict[str, Array], specs: list[TensorSpec], *, all_of_them: bool
) -> None:
    """The arrays are tensors that the model has."""
    known = {spec.name: spec for spec in specs}
    if not found or set(found) - set(known) or (all_of_them and set(known) - set(found)):
        raise ModelError(
            f"{what}: has {', '.join(found) or 'nothing'}; the model has {', '.join(known)}", _AGAIN
        )
    for name, array in found.items():
        spec = known[name]
        dtype = "BYTES" if array.dtype.kind in "SU" else DTYPES.get(array.dtype, str(array.dtype))
        fits = len(array.shape) == len(spec.shape) and all(
            size in {-1, there} for size, there in zip(spec.shape, array.shape, strict=True)
        )
        if dtype != spec.dtype or not fits:
            raise ModelError(
                f"{what}: {name!r} is {dtype} {list(array.shape)}; the model has {spec.dtype} "
                f"{spec.shape}",
                _AGAIN,
            )


def _index(wrong: Array) -> tuple[int, ...]:
    """The first place that is true."""
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
