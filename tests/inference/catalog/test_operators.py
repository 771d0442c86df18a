"""The lists of what an execution provider can run, against the runtime itself."""

import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from onnx import helper

from agent.errors import ModelError
from agent.inference.catalog import onnx_file, operators
from tests.inference.catalog.repository import linear, opsets, single
from tests.inference.catalog.test_onnx_file import branches, read_model
from tests.outside import ROOT


def refused(model: onnx_file.Onnx, ep: str = "cpu") -> ModelError:
    with pytest.raises(ModelError) as caught:
        operators.check(model, ep)
    return caught.value


def test_the_cpu_list_is_what_the_installed_runtime_registers() -> None:
    """After an upgrade of onnxruntime: make all lists again, with the command in the recipe."""
    done = subprocess.run(
        [sys.executable, "models/recipes/operators.py", "cpu"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == (ROOT / "agent/inference/catalog/operators/cpu.txt").read_text()


# Each at the edge of what the runtime has: the list has to draw it in the same place.
EDGES = [
    ("Relu", 5), ("Relu", 6), ("Relu", 26), ("Relu", 27), ("Mish", 17), ("Mish", 18),
    ("Gelu", 19), ("Gelu", 20), ("Swish", 23), ("Swish", 24), ("HardSwish", 13), ("HardSwish", 14),
    ("Acosh", 8), ("Acosh", 9), ("Round", 10), ("Round", 11), ("GlobalLpPool", 21),
    ("RandomNormalLike", 21), ("RandomNormalLike", 22), ("Nonsense", 18),
]  # fmt: skip


@pytest.mark.parametrize(("op", "opset"), EDGES)
def test_what_the_list_says_the_runtime_does(op: str, opset: int) -> None:
    model = single(op, imports=opsets(main=opset))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 5  # for pools
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        runs = True
    except Exception as error:  # noqa: BLE001 - its errors have no base class of their own
        assert "implementation" in str(error) or "opset" in str(error) or "invalid" in str(error)
        runs = False
    try:
        operators.check(read_model(model), "cpu")
        listed = True
    except ModelError:
        listed = False
    assert listed == runs


def test_an_unknown_operator_is_named_with_its_node_and_opset() -> None:
    error = refused(read_model(single("Nonsense")))
    assert "cpu cannot run Nonsense of ai.onnx, opset 18 (node 'only')" in str(error)
    assert "no operator of this name" in str(error)


def test_an_operator_of_an_unknown_domain_is_named() -> None:
    error = refused(read_model(single("Whirl", "com.acme", opsets(("com.acme", 3)))))
    assert "Whirl of com.acme, opset 3 (node 'only')" in str(error)
    assert "operators of ai.onnx, ai.onnx.ml, com.microsoft only" in str(error)


def test_a_domain_that_is_not_imported_is_said() -> None:
    assert "no opset imported" in str(refused(read_model(single("Whirl", "com.acme"))))
    operators.check(read_model(single("Gelu", "com.microsoft")), "cpu")


def test_an_opset_that_is_too_new_is_named() -> None:
    error = refused(read_model(linear(opset=27)))
    assert "opset 27 of ai.onnx; cpu goes up to 26" in str(error)
    assert error.hint == "export it with opset 26 or less"
    assert "opset 25 of ai.onnx; tensorrt goes up to 24" in str(
        refused(read_model(linear(opset=25)), "tensorrt")
    )


def test_an_operator_that_another_opset_has_says_which() -> None:
    error = refused(read_model(single("RandomNormalLike", imports=opsets(main=22))))
    assert "it has only opsets 1-21 of it" in str(error)
    assert error.hint.startswith("run it on cuda or tensorrt")
    error = refused(read_model(single("Upsample", imports=opsets(main=11))))
    assert "it has only opsets 7-9 of it" in str(error)
    assert "another opset" in error.hint


def test_where_else_it_could_run_is_the_hint() -> None:
    error = refused(read_model(single("Unique")), "cuda")
    assert "cuda cannot run Unique of ai.onnx" in str(error)
    assert error.hint.startswith("run it on cpu (")


def test_operators_in_sub_graphs_count() -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches(2), else_branch=branches(1))
    model = linear()
    model.graph.node.append(node)
    assert "Deep of ai.onnx, opset 18 (node 'bottom')" in str(refused(read_model(model)))


def test_of_many_the_first_few_are_told() -> None:
    model = linear()
    model.graph.node.extend(helper.make_node(f"Odd{i}", ["x"], [f"o{i}"]) for i in range(8))
    error = refused(read_model(model))
    assert "Odd4" in str(error)
    assert "Odd5" not in str(error)
    assert str(error).endswith("; and 3 more")


def test_a_newer_form_of_file_is_named() -> None:
    model = linear()
    model.ir_version = 14
    assert "IR version 14, expected 13 or less" in str(refused(read_model(model)))


@pytest.mark.parametrize("ep", operators.EPS)
def test_the_model_that_ships_runs_everywhere(ep: str) -> None:
    operators.check(onnx_file.read(Path(ROOT / "models/speech/1/model.onnx")), ep)


@pytest.mark.parametrize("ep", operators.EPS)
def test_each_list_is_well_formed(ep: str) -> None:
    listed = operators.allowed(ep)
    assert listed.title
    assert len(listed.spans) > 100
    for (domain, _), spans in listed.spans.items():
        for span in spans.split(","):
            first, _, last = span.partition("-")
            assert 1 <= int(first) <= int(last or first) <= listed.highest[domain]


def test_an_execution_provider_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="'tpu' is no execution provider"):
        operators.allowed("tpu")
