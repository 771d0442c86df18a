"""The ONNX engine in this process: what is joined, what is refused, what comes back as it went."""

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime import RunOptions

from agent.errors import ModelError
from agent.inference.engines import Call, Done, Faulty
from agent.inference.engines.onnx import Engine
from agent.inference.engines.tensors import DTYPES, array
from agent.inference.wire import Infer, Inferred, Load, Setup, Tensor
from bench import models
from tests.inference.house import picks

SETUP = Setup([], ["cpu"], 1)


def engine(folder: Path, model: onnx.ModelProto, **more: Any) -> Engine:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return Engine(Load("m", "onnx", str(path), **more), SETUP)


def raw(values: Any, dtype: str = "FP32") -> bytes:
    return np.array(values, DTYPES[dtype]).tobytes()


def call(tensors: list[tuple[Tensor, bytes]], outputs: list[str] = [], json: Any = ()) -> Call:  # noqa: B006
    infer = Infer([tensor for tensor, _ in tensors], outputs, list(json))
    body = b"".join(content for _, content in tensors)
    return Call(msgspec.Raw(msgspec.msgpack.encode(infer)), memoryview(body))


def floats(values: NDArray[Any], name: str = "x") -> tuple[Tensor, bytes]:
    content = values.astype(np.float32).tobytes()
    return Tensor(name, "FP32", list(values.shape), len(content)), content


def heads(done: Done) -> list[Tensor]:
    """What it says of its outputs."""
    return msgspec.msgpack.decode(done.head, type=Inferred).outputs


def of(done: Done | Faulty, at: int = 0) -> NDArray[Any]:
    """An output."""
    assert isinstance(done, Done), done
    tensor = heads(done)[at]
    return array(tensor, memoryview(bytes(done.body[at])))


def test_joined_answers_are_those_of_single_calls(tmp_path: Path) -> None:
    tiny = engine(tmp_path, models.tiny())
    assert tiny.loaded.batching
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((rows, 64)) for rows in (1, 3, 1, 2, 0, 5)]
    calls = [call([floats(one)]) for one in inputs]
    joined = tiny.run(calls, RunOptions())
    for one, values, found in zip(calls, inputs, joined, strict=True):
        alone = of(tiny.run([one], RunOptions())[0])
        assert of(found).shape == alone.shape == (len(values), 10)
        np.testing.assert_allclose(of(found), alone, rtol=1e-5, atol=1e-6)


def test_one_bad_call_among_ten_fails_alone(tmp_path: Path) -> None:
    tiny = engine(tmp_path, models.tiny())
    x = floats(np.ones((1, 64)))
    short = Tensor("x", "FP32", [1, 64], 252), bytes(252)
    bad = {
        "has the shape": call([floats(np.ones((1, 63)))]),
        "is FP64, expected FP32": call([(Tensor("x", "FP64", [1, 64], 512), bytes(512))]),
        "expected once, found 0": call([]),
        "expected once, found 2": call([x, x]),
        "input 'z' is not one": call([x, floats(np.ones(1), "z")]),
        "output 'z' is not one": call([x], ["z"]),
        "output y: expected once": call([x], ["y", "y"]),
        "252 bytes are no FP32": call([short]),
        "its data is no FP32": call([(Tensor("x", "FP32", [1, 64], 3, True), b"[1]")]),
    }
    for said, one in bad.items():
        calls = [call([x]) for _ in range(10)]
        calls[3] = one
        found = tiny.run(calls, RunOptions())
        refused = found.pop(3)
        assert isinstance(refused, Faulty)
        assert refused.fault == "refused"
        assert said in refused.message, refused.message
        assert all(of(answer).shape == (1, 10) for answer in found)
        assert tiny.run([one], RunOptions()) == [refused]


def test_one_call_that_the_model_errs_on_fails_alone(tmp_path: Path) -> None:
    chooses = engine(tmp_path, picks())
    content = [raw([i], "INT64") for i in (0, 1, 99, 3)]
    calls = [call([(Tensor("x", "INT64", [1, 1], 8), one)]) for one in content]
    found = chooses.run(calls, RunOptions())
    bad = found.pop(2)
    assert isinstance(bad, Faulty)
    assert bad.fault == "failed"
    assert "indices" in bad.message
    assert [of(one).item() for one in found] == [0.0, 1.0, 3.0]


def test_not_a_number_fails_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    log = engine(tmp_path, models.not_numbers(), finite=True)
    calls = [call([floats(np.full((1, 4), value))]) for value in (1.0, -1.0, 2.0)]
    found = log.run(calls, RunOptions())
    assert found[1] == Faulty("failed", "output y is not finite")
    np.testing.assert_allclose(of(found[2]), np.log(np.full((1, 4), 2.0)), rtol=1e-6)


def test_a_row_that_is_one_for_all_is_not_anothers(tmp_path: Path) -> None:
    adds = engine(tmp_path, models.accumulator(1))
    one, two = np.array([[1.0]]), np.array([[10.0], [20.0]])
    calls = [
        call([floats(one), floats(two, "state")], ["y"]),
        call([floats(two), floats(one, "state")], ["y"]),
    ]  # three rows each way: joined, they would be added in the wrong places
    found = adds.run(calls, RunOptions())
    for answer in found:
        np.testing.assert_array_equal(of(answer), [[11.0], [21.0]])


def test_a_model_that_is_said_to_batch_and_does_not(tmp_path: Path) -> None:
    network = models.Network(1)
    network.node("ReduceSum", ["x"], "y", keepdims=0)
    sums = engine(
        tmp_path,
        network.model("sums", [models.floats("x", "n")], [models.floats("y")]),
        batching=True,
    )
    calls = [call([floats(np.full(2, float(i)))]) for i in range(3)]
    assert [of(one).item() for one in sums.run(calls, RunOptions())] == [0.0, 2.0, 4.0]
    network = models.Network(1)
    network.node("Identity", ["x"], "y")
    scalar = engine(
        tmp_path, network.model("s", [models.floats("x")], [models.floats("y")]), batching=True
    )
    calls = [call([floats(np.array(float(i)))]) for i in range(3)]
    assert [of(one).item() for one in scalar.run(calls, RunOptions())] == [0.0, 1.0, 2.0]


def test_a_withdrawn_run_is_no_error_of_the_model(tmp_path: Path) -> None:
    tiny, options = engine(tmp_path, models.tiny()), RunOptions()
    options.terminate = True
    x = call([floats(np.ones((1, 64)))])
    assert tiny.run([x], options) == [Faulty("withdrawn", "")]
    assert tiny.run([x, x], options) == 2 * [Faulty("withdrawn", "")]


def test_a_model_without_inputs(tmp_path: Path) -> None:
    network = models.Network(1)
    network.node("Identity", [network.constant(np.float32([1.5]))], "y")
    answers = engine(tmp_path, network.model("constant", [], [models.floats("y", 1)]))
    assert [of(one).item() for one in answers.run([call([]), call([])], RunOptions())] == [1.5, 1.5]


VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True, False],
    "UINT8": [0, 1, 254, 255],
    "UINT16": [0, 1, 2, 2**16 - 1],
    "UINT32": [0, 1, 2, 2**32 - 1],
    "UINT64": [0, 1, 2**53 + 1, 2**64 - 1],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-(2**15), -1, 0, 2**15 - 1],
    "INT32": [-(2**31), -1, 0, 2**31 - 1],
    "INT64": [-(2**63), -1, 2**53 + 1, 2**63 - 1],
    "FP16": [0.5, -2.0, 65504.0, 6e-8],
    "FP32": [0.1, -1e30, 3.5, 1e-40],
    "FP64": [0.1, -1e300, 3.5, 5e-324],
    "BYTES": ["", "a", "grün", "\N{SNOWMAN}" * 9],
}
ORT = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}


def packed(dtype: str, values: list[Any]) -> bytes:
    """The raw form: little-endian, and strings behind their length."""
    if dtype == "BYTES":
        strings = [one.encode() for one in values]
        return b"".join(len(one).to_bytes(4, "little") + one for one in strings)
    return np.array(values, np.dtype(DTYPES[dtype]).newbyteorder("<")).tobytes()


@pytest.mark.parametrize("dtype", VALUES)
def test_every_type_comes_back_as_it_went(tmp_path: Path, dtype: str) -> None:
    kind = getattr(TensorProto, ORT.get(dtype, dtype))
    same = engine(tmp_path, models.identity(kind))
    values = VALUES[dtype]
    content, text = packed(dtype, values), msgspec.json.encode(values)
    nested = msgspec.json.encode([values[:2], values[2:]])
    forms = [
        (Tensor("x", dtype, [1, 4], len(content)), content),
        (Tensor("x", dtype, [1, 4], len(text), True), text),
        (Tensor("x", dtype, [1, 4], len(nested), True), nested),
        (Tensor("x", dtype, [0, 4], 0), b""),
        (Tensor("x", dtype, [0, 4], 2, True), b"[]"),
    ]
    for form in forms:
        for json in (False, True):
            asked = call([form], json=["y"] if json else [])
            empty = form[0].shape[0] == 0
            for (done,) in (
                same.run([asked], RunOptions()),
                same.run([asked] * 3, RunOptions())[:1],
            ):
                assert isinstance(done, Done)
                body = b"".join(map(bytes, done.body))
                assert heads(done)[0].dtype == dtype
                assert heads(done)[0].shape == form[0].shape
                if not json:
                    assert body == (b"" if empty else content)
                elif dtype.startswith("FP"):
                    np.testing.assert_allclose(
                        msgspec.json.decode(body), [] if empty else values, rtol=1e-3, atol=1e-7
                    )
                else:
                    assert msgspec.json.decode(body) == ([] if empty else values)


def test_a_scalar_comes_back_as_it_went(tmp_path: Path) -> None:
    network = models.Network(1)
    network.node("Identity", ["x"], "y")
    same = engine(tmp_path, network.model("s", [models.floats("x")], [models.floats("y")]))
    for tensor, content in (
        (Tensor("x", "FP32", [], 4), raw(2.5)),
        (Tensor("x", "FP32", [], 5, True), b"[2.5]"),
        (Tensor("x", "FP32", [], 3, True), b"2.5"),
    ):
        (done,) = same.run([call([(tensor, content)])], RunOptions())
        assert of(done).shape == ()
        assert of(done).item() == 2.5


BAD_JSON = {
    "FP32": ["[true]", '["1"]', "[null]", "[1e39]", "[1e999]", "{}", "[", "", "[[1], 2]", "[NaN]"],
    "INT8": ["[1.5]", "[128]", "[-129]", "[1e2]", "[false]", "[" + "9" * 400 + "]"],
    "UINT64": ["[-1]", "[18446744073709551616]"],
    "BOOL": ["[1]", "[0]", '["true"]'],
    "BYTES": ["[1]", '[["a"], ["b", "c"]]', "[null]", '["\\ud800"]'],
    "FP16": ["[65520]", "[[[[[[1]]]]], [1]]", "[" * 100_000, "[" * 20 + "]" * 20],
}


@pytest.mark.parametrize(("dtype", "text"), [(d, t) for d, ts in BAD_JSON.items() for t in ts])
def test_json_that_is_no_such_tensor_is_refused(tmp_path: Path, dtype: str, text: str) -> None:
    same = engine(tmp_path, models.identity(getattr(TensorProto, ORT.get(dtype, dtype)), 1))
    content = text.encode()
    (found,) = same.run(
        [call([(Tensor("x", dtype, [1, 1], len(content), True), content)])], RunOptions()
    )
    assert isinstance(found, Faulty)
    assert found.fault == "refused"
    assert f"its data is no {dtype} of shape" in found.message


def test_strings_that_are_cut_or_no_utf8_are_refused(tmp_path: Path) -> None:
    same = engine(tmp_path, models.identity(TensorProto.STRING, 1))
    for content in (b"\1", b"\4\0\0\0abc", b"\1\0\0\0\xff", b"\xff\xff\xff\xffa", b""):
        tensor = Tensor("x", "BYTES", [1, 1], len(content))
        (found,) = same.run([call([(tensor, content)])], RunOptions())
        assert isinstance(found, Faulty)
        assert found.fault == "refused"


def test_bytes_of_truth_other_than_1_are_true(tmp_path: Path) -> None:
    same = engine(tmp_path, models.identity(TensorProto.BOOL))
    (done,) = same.run([call([(Tensor("x", "BOOL", [1, 4], 4), b"\0\1\2\xff")])], RunOptions())
    assert isinstance(done, Done)
    assert b"".join(map(bytes, done.body)) == b"\0\1\1\1"


def test_any_mixture_in_one_message_is_answered_in_its_order(tmp_path: Path) -> None:
    same, chance = engine(tmp_path, models.identity(size=2)), random.Random(7)
    for _ in range(200):
        calls, expected = list[Call](), list[Any]()
        for _ in range(chance.randrange(1, 12)):
            rows = chance.randrange(4)
            values = np.array([[chance.random() for _ in range(2)] for _ in range(rows)])
            values = values.reshape(rows, 2).astype(np.float32)
            good = chance.random() < 0.8
            name = "x" if good else "z"
            calls.append(call([floats(values, name)], json=["*"] if chance.random() < 0.3 else []))
            expected.append(values if good else None)
        for found, values in zip(same.run(calls, RunOptions()), expected, strict=True):
            if values is None:
                assert isinstance(found, Faulty)
                continue
            np.testing.assert_array_equal(of(found), values)


def shorts(*values: float) -> NDArray[Any]:
    """As BF16."""
    return np.array([values], bfloat16)


def beside(other: int) -> onnx.ModelProto:
    """BF16 `s` and another type `t`, and both again."""
    kinds = {"s": TensorProto.BFLOAT16, "t": other}
    network = models.Network(1)
    for name in kinds:
        network.node("Identity", [name], f"{name}_out")
    given, made = (
        [helper.make_tensor_value_info(one + end, kind, ["n", 2]) for one, kind in kinds.items()]
        for end in ("", "_out")
    )
    return network.model("beside", given, made)


def test_bf16_beside_another_type(tmp_path: Path) -> None:
    both = engine(tmp_path, beside(TensorProto.FLOAT))
    calls = []
    for i in range(3):
        given = (("s", "BF16", shorts(i + 0.5, -1e30).tobytes()), ("t", "FP32", raw([i, 2])))
        calls.append(call([(Tensor(n, d, [1, 2], len(b)), b) for n, d, b in given]))
    for i, found in enumerate(both.run(calls, RunOptions())):
        assert isinstance(found, Done)
        assert [one.dtype for one in heads(found)] == ["BF16", "FP32"]
        np.testing.assert_array_equal(of(found).view(bfloat16), shorts(i + 0.5, -1e30))
        assert of(found, 1).tolist() == [[i, 2]]
    with pytest.raises(ModelError, match="of BF16 and of BYTES"):
        engine(tmp_path, beside(TensorProto.STRING))


def test_bf16_in_json_is_the_nearest_and_what_is_too_large_is_refused(tmp_path: Path) -> None:
    same = engine(tmp_path, models.identity(TensorProto.BFLOAT16, 5), finite=True)
    values = [1.0, 1.00390625, 1.01171875, -0.1, 3.3895313892515355e38]  # two lie halfway
    text = msgspec.json.encode(values)
    asked = call([(Tensor("x", "BF16", [1, 5], len(text), True), text)], json=["*"])
    found = same.run([asked], RunOptions())[0]
    assert isinstance(found, Done)
    said = msgspec.json.decode(bytes(found.body[0]))
    assert said == np.array(values, np.float32).astype(bfloat16).astype(np.float32).tolist()
    for wrong in (b"[3.4e38,0,0,0,0]", b"[1e39,0,0,0,0]", b"[1,2]", b'["a",0,0,0,0]'):
        asked = call([(Tensor("x", "BF16", [1, 5], len(wrong), True), wrong)])
        refused = same.run([asked], RunOptions())[0]
        assert isinstance(refused, Faulty)
        assert refused.fault == "refused"
    content = shorts(1, 2, 3, 4, float("inf")).tobytes()
    failed = same.run([call([(Tensor("x", "BF16", [1, 5], 10), content)])], RunOptions())[0]
    assert failed == Faulty("failed", "output y is not finite")
