"""What an .onnx file holds, read without ONNX Runtime: no line of it runs before it is checked.

Weights are passed over. Sub-graphs (If, Loop, Scan) and the model's own functions are walked like
the graph itself; a call of such a function is no operator.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from agent.errors import ModelError
from agent.inference.catalog import place
from agent.inference.catalog.manifest import Dtype
from agent.inference.catalog.protobuf import LENGTH, VARINT, Field, Reader, signed

NAME_BYTES_MAX = 1024
DEPTH_MAX = 32  # graphs in one another
DISTINCT_MAX = 10_000  # of operators, functions, files of weights
PORTS_MAX = 1000  # inputs, outputs
RANK_MAX = 32
LFS_POINTER = b"version https://git-lfs"
# TensorProto.DataType, in the names of the Open Inference Protocol v2.
DTYPES: dict[int, Dtype] = {
    **{1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64"},
    **{8: "BYTES", 9: "BOOL", 10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16"},
}
OTHER_TYPES = {4: "a sequence", 5: "a map", 8: "a sparse tensor", 9: "an optional value"}


class Operator(NamedTuple):
    """What a node runs; `opset` is None where the model does not import the domain."""

    domain: str  # "" is ai.onnx
    name: str
    opset: int | None


class Port(Struct, frozen=True):
    """An input or output of the graph, and the names of its open dimensions."""

    name: str
    dtype: Dtype
    shape: list[int] | None  # None: the file does not say
    open_names: tuple[str, ...] = ()  # "" where a dimension is known or has no name


class Onnx(Struct):
    """The parts of a model that are checked before it is loaded."""

    path: Path
    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    operators: dict[Operator, str] = field(default_factory=dict)  # and the first node of each
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    external: set[str] = field(default_factory=set)  # files of weights, as the model names them


def read(path: Path) -> Onnx:
    """What the file holds. Raises ModelError for one that is cut off, damaged or foreign."""
    with place.opened(path) as file:
        reader = Reader(path, file)
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(f"{path}: a pointer of Git LFS, not the file itself", "git lfs pull")
        return _Walk(reader).model()


class _Walk:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._found = Onnx(reader.path)
        self._functions: set[tuple[str, str]] = set()

    def model(self) -> Onnx:
        """The whole file."""
        reader, found = self._reader, self._found
        graph: Field | None = None
        functions: list[Field] = []
        for one in reader.fields(0, reader.size_bytes):
            if one.number == 1:
                found.ir_version = signed(reader.expect(one, VARINT).start)
            elif one.number == 7:
                graph = reader.expect(one, LENGTH)
            elif one.number == 8:
                self._import(one, found.opsets)
            elif one.number == 25:
                functions.append(reader.expect(one, LENGTH))
                self._bounded(functions)
        if graph is None or not found.opsets:
            missing = "graph" if graph is None else "opset"
            raise ModelError(
                f"{reader.path}: there is no {missing} in it: not an ONNX model, or cut off",
                "copy or export the model again",
            )
        for function in functions:
            self._functions.add(self._named(function))
        self._ports(graph)
        self._graph(graph, found.opsets, 1)
        for function in functions:
            self._function(function)
        return found

    def _import(self, one: Field, into: dict[str, int]) -> None:
        domain, version = "", 0
        for part in self._message(one):
            if part.number == 1:
                domain = self._name(part)
            elif part.number == 2:
                version = signed(self._reader.expect(part, VARINT).start)
        into["" if domain == "ai.onnx" else domain] = version
        self._bounded(into)

    def _named(self, function: Field) -> tuple[str, str]:
        name = domain = ""
        for part in self._message(function):
            if part.number == 1:
                name = self._name(part)
            elif part.number == 10:
                domain = self._name(part)
        return domain, name

    def _function(self, function: Field) -> None:
        opsets: dict[str, int] = {}
        for part in self._message(function):
            if part.number == 9:
                self._import(part, opsets)
        for part in self._message(function):
            if part.number == 7:
                self._node(part, self._found.opsets | opsets, 1)

    def _ports(self, graph: Field) -> None:
        """Inputs and outputs. Old files list their weights among the inputs, too."""
        inputs: dict[str, Port] = {}
        for part in self._message(graph):
            if part.number in {11, 12}:
                port = self._port(part, "input" if part.number == 11 else "output")
                if part.number == 11:
                    inputs[port.name] = port
                else:
                    self._found.outputs.append(port)
                if len(inputs) + len(self._found.outputs) > PORTS_MAX:
                    raise self._reader.refused(part.start, "has more inputs than any model needs")
        for part in self._message(graph):
            if part.number == 5:
                inputs.pop(self._weights(part), None)
            elif part.number == 15:
                inputs.pop(self._sparse(part), None)
        self._found.inputs = list(inputs.values())

    def _port(self, one: Field, kind: str) -> Port:
        name, types = "", list[Field]()
        for part in self._message(one):
            if part.number == 1:
                name = self._name(part)
            elif part.number == 2:
                types = list(self._message(part))
        for found in types:
            if found.number == 1:
                return self._tensor(name, kind, found)
        other = next((OTHER_TYPES[t.number] for t in types if t.number in OTHER_TYPES), "no type")
        raise ModelError(
            f"{self._reader.path}: {kind} {name!r} is {other}, expected a tensor",
            "export the model so that it takes and gives tensors (for scikit-learn: zipmap=False)",
        )

    def _tensor(self, name: str, kind: str, one: Field) -> Port:
        code, dims = 0, None
        for part in self._message(one):
            if part.number == 1:
                code = self._reader.expect(part, VARINT).start
            elif part.number == 2:
                dims = [self._dimension(d) for d in self._message(part) if d.number == 1]
        if code not in DTYPES or (dims and len(dims) > RANK_MAX):
            wrong = f"element type {code}" if code not in DTYPES else f"{RANK_MAX} axes or more"
            raise ModelError(
                f"{self._reader.path}: {kind} {name!r} has {wrong}, which cannot be served",
                f"export the model with one of {', '.join(DTYPES.values())}",
            )
        if dims is None:
            return Port(name, DTYPES[code], None)
        return Port(name, DTYPES[code], [size for size, _ in dims], tuple(n for _, n in dims))

    def _dimension(self, one: Field) -> tuple[int, str]:
        size, name = -1, ""
        for part in self._message(one):
            if part.number == 1:
                size = max(-1, signed(self._reader.expect(part, VARINT).start))
            elif part.number == 2:
                name = self._name(part)
        return size, name

    def _graph(self, graph: Field, opsets: dict[str, int], depth: int) -> None:
        if depth > DEPTH_MAX:
            raise self._reader.refused(graph.start, f"more than {DEPTH_MAX} graphs in one another")
        for part in self._message(graph):
            if part.number == 1:
                self._node(part, opsets, depth)
            elif depth > 1 and part.number == 5:
                self._weights(part)
            elif depth > 1 and part.number == 15:
                self._sparse(part)

    def _node(self, node: Field, opsets: dict[str, int], depth: int) -> None:
        name = op = domain = ""
        for part in self._message(node):
            if part.number == 3:
                name = self._reader.label(part)
            elif part.number == 4:
                op = self._name(part)
            elif part.number == 7:
                domain = self._name(part)
            elif part.number == 5:
                self._attribute(part, opsets, depth)
        if (domain, op) not in self._functions:
            domain = "" if domain == "ai.onnx" else domain
            self._found.operators.setdefault(Operator(domain, op, opsets.get(domain)), name)
            self._bounded(self._found.operators)

    def _attribute(self, attribute: Field, opsets: dict[str, int], depth: int) -> None:
        for part in self._message(attribute):
            if part.number in {6, 11}:
                self._graph(self._reader.expect(part, LENGTH), opsets, depth + 1)
            elif part.number in {5, 10}:
                self._weights(part)
            elif part.number in {22, 23}:
                self._sparse(part)

    def _weights(self, tensor: Field) -> str:
        """The name of a tensor; where its bytes lie in another file, that file is noted."""
        name = location = ""
        outside = False
        for part in self._message(tensor):
            if part.number == 8:
                name = self._name(part)
            elif part.number == 13:
                key, value = self._entry(part)
                location = value if key == "location" else location
            elif part.number == 14:
                outside = self._reader.expect(part, VARINT).start == 1
        if outside:
            self._found.external.add(location)
            self._bounded(self._found.external)
        return name

    def _sparse(self, tensor: Field) -> str:
        names = [self._weights(p) for p in self._message(tensor) if p.number in {1, 2}]
        return names[0] if names else ""

    def _entry(self, one: Field) -> tuple[str, str]:
        parts = {p.number: self._name(p) for p in self._message(one) if p.number in {1, 2}}
        return parts.get(1, ""), parts.get(2, "")

    def _message(self, one: Field) -> Iterator[Field]:
        self._reader.expect(one, LENGTH)
        return self._reader.fields(one.start, one.end)

    def _name(self, one: Field) -> str:
        return self._reader.text(one, NAME_BYTES_MAX)

    def _bounded(self, found: object) -> None:
        if len(found) > DISTINCT_MAX:  # type: ignore[arg-type]
            raise self._reader.refused(0, "has more kinds of parts than any model needs")
