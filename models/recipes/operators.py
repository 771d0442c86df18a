"""What an execution provider can run, as the lists in agent/inference/catalog/operators say it.

    python models/recipes/operators.py cpu > agent/inference/catalog/operators/cpu.txt
    python models/recipes/operators.py cuda > …/cuda.txt          with onnxruntime-gpu and CUDA
    python models/recipes/operators.py tensorrt operators.md > …/tensorrt.txt

cpu and cuda are read from the kernels that the installed ONNX Runtime registers (what its
docs/OperatorKernels.md is made of), tensorrt from onnx-tensorrt's docs/operators.md. Needs onnx.
To be run again whenever the pinned onnxruntime or TensorRT changes.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
from onnx import defs
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

Operator = tuple[str, str]  # domain, name
Opsets = dict[str, int]  # the highest one of each domain
# What ONNX Runtime 1.31 loads: higher ones it knows are still being written.
HIGHEST: Opsets = {"": 26, "ai.onnx.ml": 5, "com.microsoft": 1}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FOLDED = {("", "Constant")}  # made an initializer before any provider sees it
OPEN_END = 2**31 - 1


def schemas() -> dict[Operator, dict[int, bool]]:
    """The versions of each operator that the runtime knows, and which of them are deprecated."""
    found: dict[Operator, dict[int, bool]] = defaultdict(dict)
    for schema in runtime.get_all_operator_schema():
        found[schema.domain, schema.name][schema.since_version] = schema.deprecated
    return found


def functions() -> set[tuple[Operator, int]]:
    """Versions of operators that ONNX defines by others, which the runtime puts in their place."""
    return {
        ((schema.domain, schema.name), schema.since_version)
        for schema in defs.get_all_schemas_with_history()
        if schema.has_function or schema.has_context_dependent_function
    }


def since(versions: dict[int, bool], opset: int) -> int | None:
    """The version an operator has in an opset; None where it has none."""
    version = max((v for v in versions if v <= opset), default=None)
    return None if version is None or versions[version] else version


def kernels(provider: str) -> dict[Operator, list[tuple[int, int]]]:
    """The versions that a provider's kernels are for."""
    found: dict[Operator, list[tuple[int, int]]] = defaultdict(list)
    for kernel in runtime.get_all_opkernel_def():
        if kernel.provider == provider:
            found[kernel.domain, kernel.op_name].append(tuple(kernel.version_range))
    return found


def has_kernel(ranges: list[tuple[int, int]], version: int) -> bool:
    """An open range is for its first version alone: a newer one may mean something else."""
    return any(a <= version <= b if b != OPEN_END else a == version for a, b in ranges)


def of_runtime(provider: str) -> dict[Operator, list[int]]:
    """The opsets in which the runtime can place each operator on a provider."""
    there, whole = kernels(provider), functions()
    found = {}
    for operator, versions in schemas().items():
        opsets = []
        for opset in range(1, HIGHEST.get(operator[0], 0) + 1):
            version = since(versions, opset)
            if version and (
                operator in FOLDED
                or (operator, version) in whole
                or has_kernel(there[operator], version)
            ):
                opsets.append(opset)
        found[operator] = opsets
    return found


def of_tensorrt(page: str) -> tuple[dict[Operator, list[int]], str]:
    """The same, from the table in onnx-tensorrt's documentation; and of which TensorRT it is."""
    said = re.search(r"TensorRT ([\d.]+) supports .* opset (\d+) to opset (\d+)", page)
    assert said, "the page does not say which opsets"
    names = re.findall(r"^\| *(\w+) *\| *Y", page, re.MULTILINE)
    known, opsets = schemas(), range(int(said[2]), int(said[3]) + 1)
    found = {("", name): [o for o in opsets if since(known["", name], o)] for name in names}
    return found, said[1]


def spans(opsets: list[int]) -> str:
    """`[6, 7, 8, 10]` -> `6-8,10`."""
    parts: list[list[int]] = []
    for opset in opsets:
        if parts and parts[-1][-1] == opset - 1:
            parts[-1].append(opset)
        else:
            parts.append([opset])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def lines(found: dict[Operator, list[int]], title: str) -> Iterator[str]:
    """The file."""
    yield f"# {title}"
    yield "# Made by models/recipes/operators.py."
    for domain in sorted({domain for (domain, _), opsets in found.items() if opsets}):
        own = {name: opsets for (d, name), opsets in found.items() if d == domain and opsets}
        highest = max(max(opsets) for opsets in own.values())
        yield f"[{domain or 'ai.onnx'} {highest}]"
        groups: dict[str, list[str]] = defaultdict(list)
        for name, opsets in own.items():
            groups[spans(opsets)].append(name)
        for span, names in sorted(groups.items(), key=lambda g: (int(re.split(r"\D", g[0])[0]), g)):
            yield f"{span}: {' '.join(sorted(names))}"


def main(ep: str, page: str = "") -> None:
    """Print the list of one execution provider."""
    if ep == "tensorrt":
        found, version = of_tensorrt(Path(page).read_text())
        title = f"TensorRT {version}, as onnx-tensorrt's docs/operators.md has it"
    else:
        found = of_runtime(PROVIDERS[ep])
        title = f"ONNX Runtime {onnxruntime.__version__}, {PROVIDERS[ep]}"
    print("\n".join(lines(found, title)))


if __name__ == "__main__":
    main(*sys.argv[1:])
