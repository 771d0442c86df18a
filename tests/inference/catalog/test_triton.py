"""Triton's repositories, in the forms that its own examples and users have."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.inference.catalog import Catalog, TensorSpec, pbtxt, triton
from agent.inference.catalog.manifest import State, Wishes
from tests.inference.catalog.repository import install, linear

LONG = os.environ.get("HOLDFAST_LONG") == "1"
EXAMPLES = 20_000 if LONG else 150


def config(text: str, name: str = "m") -> triton.Config:
    return triton.read(text.encode(), "config.pbtxt", name)


PORTS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""

IMAGES = """
name: "densenet_onnx"
platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
  }
]
output [
  {
    name: "fc6_1"
    data_type: TYPE_FP32
    dims: [ 1000 ]
    label_filename: "labels.txt"
  }
]
"""

BATCHES = """
# served to the line cameras
backend: "onnxruntime"
max_batch_size: 16
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 2000000 max_queue_size: 32 }
}
input { name: 'x', data_type: TYPE_INT64, dims: -1 };
output: < name: "y" data_type: TYPE_STRING dims: [-1, 2] >
instance_group [
  { count: 2 kind: KIND_GPU gpus: [ 0 ] }
]
parameters: { key: "intra_op_thread_count" value: { string_value: "3" } }
parameters { key: "execution_mode" value { string_value: "1" } }
optimization { execution_accelerators {
  gpu_execution_accelerator : [ { name : "tensorrt"
    parameters { key: "precision_mode" value: "FP16" } } ]
}}
version_policy: { latest { num_versions: 2 } }
model_warmup [ { name: "w" batch_size: 1 inputs { key: "x" value: { data_type: TYPE_INT64 dims: 4 zero_data: true } } count: 5 } ]
response_cache { enable: true }
"""  # noqa: E501 - as people write it

STREAMS = """
platform: "onnxruntime_onnx"
max_batch_size: 8
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  oldest { max_candidate_sequences: 64 max_queue_delay_microseconds: 2000 }
  state [
    {
      input_name: "state"
      output_name: "state_out"
      data_type: TYPE_FP32
      dims: [ 128 ]
      initial_state: { data_type: TYPE_FP32 dims: [ 128 ] zero_data: true name: "zeros" }
    }
  ]
}
input [ { name: "x" data_type: TYPE_FP32 dims: [ 512 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def test_an_image_classifier() -> None:
    found = config(IMAGES, "densenet_onnx")
    assert found.inputs == [TensorSpec("data_0", "FP32", [3, 224, 224])]
    assert found.outputs == [TensorSpec("fc6_1", "FP32", [1000])]
    assert (found.batching, found.file, found.wishes) == (False, "model.onnx", Wishes())
    assert [one.split(" is not")[0] for one in found.warnings] == [
        "input 'data_0': format",
        "output 'fc6_1': label_filename",
    ]


def test_batches_and_all_that_goes_with_them() -> None:
    found = config(BATCHES)
    assert found.inputs == [TensorSpec("x", "INT64", [-1, -1])]
    assert found.outputs == [TensorSpec("y", "BYTES", [-1, -1, 2])]
    assert found.batching
    assert found.wishes == Wishes(
        batch_max=16,
        batch_delay_ms_max=0.5,
        instances=2,
        devices=("tensorrt", "cuda"),
        threads=3,
        queue_max=32,
        request_timeout_s=2.0,
    )
    assert (found.warm_up, found.deterministic) == (5, True)
    assert {one.split(" ")[0].rstrip(":") for one in found.warnings} == {
        "optimization",
        "version_policy",
        "dynamic_batching.preferred_batch_size",
        "instance_group.gpus",
        "parameters[execution_mode]",
        "model_warmup",
    }


def test_streams_with_their_state() -> None:
    found = config(STREAMS)
    assert found.state == [State("state", "state_out")]
    assert found.wishes.batch_delay_ms_max == 2.0
    assert found.wishes.batch_max == 1  # rows are not put together without dynamic_batching
    assert len(found.warnings) == 2


REFUSED = {
    'platform: "tensorrt_plan"': "platform: 'tensorrt_plan' cannot be run here",
    'backend: "python"': "backend: 'python' cannot be run here",
    'name: "other"': "says 'other', lies in the folder of 'm'",
    "ensemble_scheduling { step [ { model_name: 'a' } ] }": "ensemble_scheduling: asks for",
    "model_transaction_policy { decoupled: true }": "several answers to one request",
    "model_repository_agents { agents [ { name: 'checksum' } ] }": "model_repository_agents",
    "batch_input [ { kind: BATCH_ELEMENT_COUNT } ]": "batch_input: asks for",
    "input { name: 'x' data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }": "reshape asks for",
    "input { name: 'x' data_type: TYPE_FP32 dims: 1 optional: true }": "optional asks for",
    "input { name: 'x' data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }": "allow_ragged",
    "input { name: 'x' data_type: FP32 dims: 1 }": "expected a name, a data_type of",
    "input { name: 'x' data_type: TYPE_FP32 }": "expected a name, a data_type of",
    "sequence_batching { control_input [ { name: 'START' } ] }": "control_input: asks for inputs",
    "sequence_batching { state { input_name: 'a' output_name: 'b' initial_state "
    "{ data_file: 'f' } } }": "does not begin with zeros",
    "instance_group { kind: KIND_MODEL }": "KIND_MODEL is not known here",
    "max_batch_size: 1 max_batch_size: 2": "max_batch_size: written twice",
    "max_batch_size: 'two'": "max_batch_size: expected a whole number",
    "max_batchsize: 3": "max_batchsize: unknown field",
    "dynamic_batching { delay: 3 }": "dynamic_batching.delay: unknown field",
    "dynamic_batching [ 3 ]": "dynamic_batching: expected messages in { }",
    'name: "m': "is not the text form",
    "input [ { name: 'x' ": "the text ends; expected '}'",
    "input [ 1 2 ]": "expected ',' or ']'",
    "max_batch_size 3": "expected ':' or '{'",
    "max_batch_size: }": "expected a value",
    "}": "expected a field's name",
    "a {" * 100: "messages in one another",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_changes_the_meaning_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(ModelError) as caught:
        config(f"# a comment\n{text}")
    assert REFUSED[text] in str(caught.value)
    assert str(caught.value).startswith("config.pbtxt:")
    assert caught.value.hint


def test_the_line_is_that_of_the_field() -> None:
    with pytest.raises(ModelError, match=r"^config\.pbtxt:4: "):
        config('name: "m"\n\ndynamic_batching {\n  surprise: 1\n}')


def test_texts_are_joined_and_unescaped() -> None:
    found = pbtxt.parse(
        rb'a: "one" ' + b"'\\x74w\\157'" + rb' "\n\"" b: -0x10 c: - 2 d: 1.5e3f', "p"
    )
    assert found.text("a") == 'onetwo\n"'
    assert (found.number("b"), found.number("c")) == (-16, -2)
    with pytest.raises(ModelError, match="d: expected a whole number"):
        found.number("d")


def triton_repository(root: Path, text: str, *, beside: bool = False) -> Path:
    folder = install(root, linear())
    (folder / "model.yaml").unlink()
    (folder if beside else folder.parent).joinpath("config.pbtxt").write_text(text)
    return folder


@pytest.mark.parametrize("beside", [True, False])
def test_a_repository_of_triton_is_served(tmp_path: Path, beside: bool) -> None:
    triton_repository(tmp_path, "max_batch_size: 8 dynamic_batching {}" + PORTS, beside=beside)
    model = Catalog(tmp_path).newest("m")
    assert model.manifest.inputs == [TensorSpec("x", "FP32", [-1, 4])]
    assert model.manifest.batching is True
    assert model.wishes.batch_max == 8
    assert len(model.sha256) == 64


def test_a_configuration_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    triton_repository(tmp_path, "max_batch_size: 0" + PORTS)
    with pytest.raises(ModelError, match=r"'x' is FP32 \[-1, 4\]; the manifest says FP32 \[4\]"):
        Catalog(tmp_path).newest("m")


def test_a_bare_model_needs_no_more_than_an_empty_configuration(tmp_path: Path) -> None:
    triton_repository(tmp_path, "")
    assert Catalog(tmp_path).newest("m").manifest.batching is False


def test_versions_that_the_policy_leaves_out_do_not_serve(tmp_path: Path) -> None:
    triton_repository(tmp_path, "version_policy { specific { versions: [ 1, 3 ] } }")
    for version in (2, 4):
        install(tmp_path, linear(), version=version)
        (tmp_path / f"m/{version}/model.yaml").unlink()
    catalog = Catalog(tmp_path)
    assert catalog.newest("m").manifest.version == 1
    with pytest.raises(ModelError, match="version 4 does not serve, only 1, 3"):
        catalog.verified("m", 4)


def test_a_model_yaml_goes_before(tmp_path: Path) -> None:
    triton_repository(tmp_path, "surprise: 1")
    install(tmp_path, linear())
    assert Catalog(tmp_path).newest("m").warnings == ()


def test_a_configuration_from_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = triton_repository(tmp_path / "models", "")
    (folder.parent / "config.pbtxt").rename(tmp_path / "outside.pbtxt")
    (folder.parent / "config.pbtxt").symlink_to(tmp_path / "outside.pbtxt")
    with pytest.raises(ModelError, match="leads out of"):
        Catalog(tmp_path / "models").verified("m", 1)


WORDS = ["name", "input", "dims", "{", "}", "[", "]", ":", ",", ";", "<", ">", "-", "1", "-2.5e3"]
WORDS += ["'a'", '"b', "TYPE_FP32", "true", "# c\n", "\\", "\n", "0x", "\0", "é", "state", "count"]
FIELDS = ["max_batch_size", "dynamic_batching", "sequence_batching", "instance_group", "parameters"]


@settings(max_examples=EXAMPLES)
@given(st.lists(st.sampled_from(WORDS + FIELDS), max_size=60).map(" ".join) | st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        config(text)
    except ModelError as error:
        assert error.hint


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_a_damaged_configuration_is_read_or_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([IMAGES, BATCHES, STREAMS]))
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 12))
    put = data.draw(st.sampled_from(["", *WORDS]))
    try:
        config(text[:at] + put + text[at + cut :], "densenet_onnx")
    except ModelError as error:
        assert error.hint
