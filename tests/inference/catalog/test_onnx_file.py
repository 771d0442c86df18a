"""Reading an .onnx without ONNX Runtime: what real ones hold; a hostile one does no harm."""

import os
import random
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.errors import ModelError
from agent.inference.catalog import onnx_file, protobuf
from agent.inference.catalog.onnx_file import Operator
from tests.inference.catalog.repository import linear, opsets, single
from tests.outside import ROOT

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))
EXAMPLES = 20_000 if LONG else 150
SPEECH = (ROOT / "models/speech/1/model.onnx").read_bytes()


def read(content: bytes, path: Path | None = None) -> onnx_file.Onnx:
    if path:
        path.write_bytes(content)
        return onnx_file.read(path)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(content)
        file.flush()
        return onnx_file.read(Path(file.name))


def read_model(model: onnx.ModelProto) -> onnx_file.Onnx:
    return read(model.SerializeToString())


def test_the_model_that_ships_holds_what_onnx_says() -> None:
    theirs = onnx.load_from_string(SPEECH)
    ours = read(SPEECH)
    assert ours.ir_version == theirs.ir_version
    assert ours.opsets == {one.domain: one.version for one in theirs.opset_import}
    ops = {(node.domain, node.op_type) for node in theirs.graph.node}
    assert {(one.domain, one.name) for one in ours.operators} == ops
    assert [port.name for port in ours.inputs] == [one.name for one in theirs.graph.input]
    assert [port.shape for port in ours.outputs] == [[-1, 2, 257], [-1], [-1, 642]]


def test_weights_among_the_inputs_are_no_inputs() -> None:
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    assert [port.name for port in read_model(model).inputs] == ["x"]


def branches(depth: int, op: str = "Deep") -> onnx.GraphProto:
    """A graph with an If in an If in an If, and an operator at the bottom."""
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    if depth == 0:
        return helper.make_graph(
            [helper.make_node(op, [], ["o"], name="bottom")], "b", [], [output]
        )
    inner = branches(depth - 1, op)
    node = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
    return helper.make_graph([node], "b", [], [output])


def test_operators_in_sub_graphs_are_seen() -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches(3), else_branch=branches(2))
    model = linear()
    model.graph.node.append(node)
    assert read_model(model).operators[Operator("", "Deep", 18)] == "bottom"


def test_graphs_in_one_another_have_an_end(tmp_path: Path) -> None:
    content = b""
    for _ in range(400):  # node{ attribute{ g{ ... } } }
        for number in (6, 5, 1):
            content = bytes([number << 3 | 2]) + varint(len(content)) + content
    model = linear()
    whole = model.SerializeToString() + bytes([7 << 3 | 2]) + varint(len(content)) + content
    with pytest.raises(ModelError, match="more than 32 graphs in one another"):
        read(whole, tmp_path / "m.onnx")


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def test_a_models_own_functions_are_walked_and_their_calls_are_no_operators() -> None:
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Odd", ["a"], ["b"], name="in")],
        opsets(main=15),
    )  # fmt: skip
    model = single("Twice", "own", opsets(("own", 1)))
    model.functions.append(function)
    found = read_model(model).operators
    assert found == {Operator("", "Odd", 15): "in"}


@pytest.mark.parametrize("where", ["initializer", "attribute", "sparse"])
def test_weights_in_other_files_are_found_wherever_they_are_named(where: str) -> None:
    tensor = numpy_helper.from_array(np.ones((2,), np.float32), "w2")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="far.bin")
    model = linear()
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    else:
        sparse = onnx.SparseTensorProto(values=tensor, dims=[4])
        model.graph.sparse_initializer.append(sparse)
    assert read_model(model).external == {"far.bin"}


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """Its opsets stand at its end, so that none of its heads is a model."""
    content, said = linear().SerializeToString(), []
    for length in range(len(content)):
        with pytest.raises(ModelError) as caught:
            read(content[:length], tmp_path / "m.onnx")
        said.append(str(caught.value))
    assert sum("cut off" in one for one in said) > len(content) * 0.95
    assert "the file ends after" in said[len(content) // 2]


def test_a_part_is_not_longer_than_what_it_lies_in() -> None:
    with pytest.raises(ModelError, match="field 1 is longer than what it lies in"):
        read(hidden(2) + b"\x0a\x05" + b"\x42\x02\x10\x12")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04" + bytes(100), b"<html>not found</html>", b"\x89HDF\r\n", bytes(1000)],
)
def test_a_foreign_file_is_said_to_be_one(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"not an ONNX model|has 0 bytes"):
        read(content)


def hidden(length: int) -> bytes:
    return b"\x3a" + varint(length)  # field 7, graph: so many bytes


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=2000))
@example(hidden(1 << 62))
@example(hidden(5) + hidden(1 << 40))
@example(b"\xff" * 40)
@example(b"\x08" + b"\x80" * 9 + b"\x02")
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        read(content)
    assert caught.value.hint


def mutated(chance: random.Random, content: bytes) -> bytes:
    """A real file with a few bytes changed, cut out or put in, mostly near its structure."""
    spoilt = bytearray(content)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(spoilt))
        kind = chance.randrange(4)
        if kind == 0:
            spoilt[at] = chance.randrange(256)
        elif kind == 1:
            spoilt[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del spoilt[at : at + chance.randrange(1, 9)]
        else:
            spoilt[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(spoilt) or b"\0"


def sources() -> list[bytes]:
    """Files that are nearly all structure; of the one that ships the end, where that is."""
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches(3), else_branch=branches(2))
    nested = linear()
    nested.graph.node.append(node)
    bare = onnx.load_from_string(SPEECH)
    for one in bare.graph.initializer:
        one.ClearField("raw_data")
    return [m.SerializeToString() for m in (linear(), nested, single("Whirl", "com.acme"), bare)]


def test_damaged_files_are_refused_or_read_and_nothing_else() -> None:
    chance = random.Random(SEED)
    originals, refusals, tries = sources(), 0, 20_000 if LONG else 800
    for _ in range(tries):
        content = mutated(chance, chance.choice(originals))
        try:
            read(content)
        except ModelError as error:
            assert error.hint
            refusals += 1
    assert 0 < refusals < tries


def test_a_file_of_nothing_but_fields_costs_a_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "many.onnx"
    path.write_bytes(b"\x10\x00" * 2000)
    with path.open("rb") as file:
        reader = protobuf.Reader(path, file, fields_max=1000)
        with pytest.raises(ModelError, match="more fields than any model needs"):
            list(reader.fields(0, reader.size_bytes))


def test_a_large_file_is_passed_over_not_read(tmp_path: Path) -> None:
    """A gibibyte of weights that is nowhere on the disk: reading it all would be seen in memory."""
    import resource

    weights = 1 << 30
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[weights])
    head = tensor.SerializeToString() + b"\x4a" + varint(weights)  # raw_data
    model = linear()
    model.graph.ClearField("initializer")
    graph = model.graph.SerializeToString()
    inside = graph + b"\x2a" + varint(len(head) + weights) + head
    model.ClearField("graph")
    front = model.SerializeToString() + hidden(len(inside) + weights) + inside
    path = tmp_path / "large.onnx"
    path.write_bytes(front)
    os.truncate(path, len(front) + weights)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(onnx_file.read(path).operators) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


@pytest.mark.parametrize("elem", [TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN])
def test_a_type_that_cannot_travel_is_named(elem: int) -> None:
    model = linear()
    model.graph.output[0].type.tensor_type.elem_type = elem
    with pytest.raises(ModelError, match=f"output 'y' has element type {elem}"):
        read_model(model)
