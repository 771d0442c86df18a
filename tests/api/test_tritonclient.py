"""NVIDIA's own client for Triton, unchanged, against a real agent over TCP: sync and async."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from agent import VERSION
from tests.api.triton import KINDS, Triton
from tests.outside import running, until

Array = NDArray[Any]
DEADLINE_S = 90.0
ONES = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    device = Triton(tmp_path_factory.mktemp("triton"))
    with running(device):
        device.worker()
        yield device


@pytest.fixture
def client(agent: Triton) -> Iterator[Any]:
    with triton.InferenceServerClient(
        agent.url, network_timeout=DEADLINE_S, connection_timeout=DEADLINE_S
    ) as found:
        yield found


def given(name: str, values: Array, dtype: str = "FP32", *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(values.shape), dtype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def wanted(name: str, *, binary: bool = True, **more: Any) -> Any:
    return triton.InferRequestedOutput(name, binary_data=binary, **more)


def refused(call: Any, *arguments: Any, **more: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as error:
        call(*arguments, **more)
    return error.value


def test_the_server_says_what_it_is(agent: Triton, client: Any) -> None:
    assert client.is_server_live()
    until(client.is_server_ready, "every domain is ready", DEADLINE_S)
    told = client.get_server_metadata()
    assert (told["name"], told["version"]) == ("holdfast", VERSION)
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(told["extensions"])


def test_a_model_says_what_it_is(client: Any) -> None:
    for version in ("", "2"):
        assert client.is_model_ready("picked", version)
        told = client.get_model_metadata("picked", version)
        assert told == {
            "name": "picked",
            "versions": ["2"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
        }
        config = client.get_model_config("picked", version)
        assert config["max_batch_size"] == 10
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
        assert config["version_policy"] == {"specific": {"versions": [2]}}
    assert client.get_model_config("same_bytes")["output"][0]["data_type"] == "TYPE_STRING"
    assert client.get_model_config("loop")["max_batch_size"] == 0
    state = client.get_model_metadata("accumulator")
    assert [one["name"] for one in (*state["inputs"], *state["outputs"])] == ["x", "y"]
    assert client.get_model_metadata("speech")["platform"] == "holdfast_speech"
    assert client.get_model_config("speech")["backend"] == "holdfast"
    assert not client.is_model_ready("picked", "1")
    assert not client.is_model_ready("nobodys")
    assert refused(client.get_model_metadata, "picked", "1").status() == "404"
    assert refused(client.get_model_metadata, "picked", "new").status() == "400"
    assert "no domain has" in refused(client.get_model_config, "a b").message()


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("dtype", KINDS)
def test_each_dtype_there_and_back(client: Any, dtype: str, packed: str | None) -> None:
    values = KINDS[dtype].values
    ways = [(sent, asked) for sent in (True, False) for asked in (True, False)]
    for sent, asked in ways:
        if dtype == "BF16" and not sent:  # the client's own rule
            with pytest.raises(InferenceServerException, match="binary"):
                given("x", values, dtype, binary=False)
            continue
        for rows in (values, np.repeat(values, 3, 0), values[:0]):
            result = client.infer(
                f"same_{dtype.lower()}",
                [given("x", rows, dtype, binary=sent)],
                outputs=[wanted("y", binary=asked)],
                request_compression_algorithm=packed,
                response_compression_algorithm=packed,
            )
            got = result.as_numpy("y")
            if dtype == "BYTES" and not asked:
                got = np.array([one.encode() for one in got.ravel()], "O").reshape(got.shape)
            assert got.dtype == values.dtype
            np.testing.assert_array_equal(got, rows)


def test_several_tensors_each_in_its_own_way(client: Any) -> None:
    a = np.array([[1.5, -2]], np.float32)
    b, c = np.array([[b"one", b""]], "O"), np.array([[3, 4]], np.int64)
    for turn in range(8):
        ways = [bool(turn & 1), bool(turn & 2), bool(turn & 4)]
        inputs = [
            given(name, values, dtype, binary=way)
            for name, values, dtype, way in zip(
                "abc", (a, b, c), ("FP32", "BYTES", "INT64"), ways, strict=True
            )
        ]
        outputs = [
            wanted(f"{name}_out", binary=not way) for name, way in zip("abc", ways, strict=True)
        ]
        result = client.infer("mixed", inputs, outputs=outputs)
        np.testing.assert_array_equal(result.as_numpy("a_out"), a)
        np.testing.assert_array_equal(result.as_numpy("b_out").astype("S"), b.astype("S"))
        np.testing.assert_array_equal(result.as_numpy("c_out"), c)
        one = client.infer("mixed", inputs, outputs=outputs[2:])
        assert [each["name"] for each in one.get_response()["outputs"]] == ["c_out"]


def test_what_else_a_request_says(client: Any) -> None:
    asked = [given("x", ONES)]
    said = client.infer("picked", asked, model_version="2", request_id="mine").get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("mine", "picked", "2")
    for more in (
        {"priority": 1},
        {"priority": 9},
        {"timeout": 30_000_000},
        {"timeout": 0},
        {"parameters": {"mine": 1, "also": "text", "class": "batch"}},
        {"query_params": {"test": 1}},
        {"headers": {"X-Mine": "1"}},
    ):
        np.testing.assert_array_equal(client.infer("picked", asked, **more).as_numpy("y"), ONES)
    for message, more in (
        ("priority", {"priority": -1}),
        ("timeout", {"timeout": -1}),
        ("classification", {"outputs": [wanted("y", class_count=2)]}),
        ("version 2 is loaded", {"model_version": "1"}),
        ("no state", {"sequence_id": 3, "sequence_start": True}),
    ):
        assert message in refused(client.infer, "picked", asked, **more).message()
    shared = triton.InferInput("x", [1, 4], "FP32").set_shared_memory("mine", 16)
    assert "shared memory" in refused(client.infer, "picked", [shared]).message()
    turns = given("turns", np.array([1 << 40]), "INT64")
    late = refused(client.infer, "loop", [turns], timeout=50_000)
    assert late.status() == "504"


def test_a_sequence(client: Any) -> None:
    sums = []
    for step in range(4):
        result = client.infer(
            *("accumulator", [given("x", ONES * (step + 1))]),
            **{"sequence_id": 7, "sequence_start": step == 0, "sequence_end": step == 3},
        )
        sums.append(result.as_numpy("y")[0, 0])
    assert sums == [1, 3, 6, 10]
    assert refused(client.infer, "accumulator", [given("x", ONES)], sequence_id=7).status() == "404"


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_a_large_answer_comes_packed_where_that_pays(client: Any, packed: str) -> None:
    alike = np.zeros((60_000, 4), np.float32)
    noise = np.random.default_rng(1).bytes(alike.nbytes)
    for values, less in ((alike, True), (np.frombuffer(noise, np.int32).reshape(-1, 4), False)):
        dtype = "FP32" if less else "INT32"
        result = client.infer(
            *(f"same_{dtype.lower()}", [given("x", values, dtype)]),
            request_compression_algorithm=packed,
            response_compression_algorithm=packed,
        )
        np.testing.assert_array_equal(result.as_numpy("y"), values)
        asked, length = triton.InferenceServerClient.generate_request_body(
            [given("x", values, dtype)]
        )
        answer = client._post(
            f"v2/models/same_{dtype.lower()}/infer",
            asked,
            {"Accept-Encoding": packed, "Inference-Header-Content-Length": length},
            None,
        )
        assert (answer.get("Content-Encoding") == packed) is less
        assert (int(answer.get("Content-Length")) < values.nbytes / 10) is less
        answer.read()


def test_what_became_of_the_calls(client: Any) -> None:
    def stats() -> Any:
        return client.get_inference_statistics("sure", "1")["model_stats"][0]

    before = stats()
    values = np.random.default_rng().random((3, 4), np.float32)
    client.infer("sure", [given("x", values)])
    client.infer("sure", [given("x", values)])
    refused(client.infer, "sure", [given("x", values[:, :3])])
    after = stats()
    counts = {
        key: one["count"] - before["inference_stats"][key]["count"]
        for key, one in after["inference_stats"].items()
    }
    assert counts == {
        "success": 2,
        "fail": 1,
        "queue": 1,
        "compute_input": 1,
        "compute_infer": 1,
        "compute_output": 1,
        "cache_hit": 1,
        "cache_miss": 2,
    }
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 2
    assert after["last_inference"] > 1.7e12
    assert after["inference_stats"]["compute_infer"]["ns"] > 0
    assert [one for one in after["batch_stats"] if one["batch_size"] == 3]
    every = client.get_inference_statistics()["model_stats"]
    assert {"sure", "picked", "speech"} <= {one["name"] for one in every}


def test_the_repository(client: Any) -> None:
    def index() -> dict[tuple[str, str], str]:
        found = client.get_model_repository_index()
        return {(one["name"], one["version"]): one["state"] for one in found}

    assert index()["picked", "2"] == "READY"
    assert index()["picked", "1"] == "UNAVAILABLE"
    assert index()["nobodys", "1"] == "UNAVAILABLE"
    client.unload_model("picked")
    assert not client.is_model_ready("picked")
    assert index()["picked", "2"] == "UNAVAILABLE"
    assert refused(client.infer, "picked", [given("x", ONES)]).status() == "404"
    client.load_model("picked")
    assert client.is_model_ready("picked", "2")
    order = client._post(
        "v2/repository/models/picked/load", '{"parameters": {"version": 1}}', None, None
    )
    assert order.status_code == 200, order.read()
    order.read()
    assert client.is_model_ready("picked", "1")
    client.load_model("picked")
    answer = client._post("v2/repository/index", '{"ready": true}', None, None)
    assert b"UNAVAILABLE" not in answer.read()
    assert refused(client.load_model, "nobodys").status() == "404"
    assert "'config'" in refused(client.load_model, "picked", config="{}").message()
    files = {"file:1/model.onnx": b"onnx"}
    assert refused(client.load_model, "picked", config="{}", files=files).status() == "400"
    client.unload_model("picked", unload_dependents=True)
    client.load_model("picked")


def test_what_holdfast_has_not_is_said(client: Any) -> None:
    absent: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("shared memory", client.get_system_shared_memory_status, ()),
        ("shared memory", client.get_system_shared_memory_status, ("mine",)),
        ("shared memory", client.register_system_shared_memory, ("mine", "/mine", 16)),
        ("shared memory", client.unregister_system_shared_memory, ()),
        ("shared memory", client.unregister_system_shared_memory, ("mine",)),
        ("shared memory", client.get_cuda_shared_memory_status, ()),
        ("shared memory", client.register_cuda_shared_memory, ("mine", b"x", 0, 16)),
        ("shared memory", client.unregister_cuda_shared_memory, ()),
        ("trace settings", client.get_trace_settings, ()),
        ("trace settings", client.update_trace_settings, ("picked", {"trace_rate": "1"})),
        ("log settings", client.get_log_settings, ()),
        ("log settings", client.update_log_settings, ({"log_verbose_level": 1},)),
    ]
    for what, call, arguments in absent:
        error = refused(call, *arguments)
        assert error.status() == "404"
        assert f"Holdfast has no {what}" in error.message()


def test_many_at_once_over_a_pool_of_connections(agent: Triton) -> None:
    with triton.InferenceServerClient(
        agent.url, concurrency=8, network_timeout=DEADLINE_S
    ) as client:
        asked = []
        for i in range(64):
            packed = ("gzip", "deflate", None)[i % 3]
            values = np.full((1 + i * 100, 4), i, np.float32)
            more = {"request_compression_algorithm": packed}
            more["response_compression_algorithm"] = packed
            asked.append(client.async_infer("same_fp32", [given("x", values)], **more))
        for i, one in enumerate(asked):
            found = one.get_result().as_numpy("y")
            assert found.shape == (1 + i * 100, 4)
            assert (found == i).all()


async def test_the_asyncio_client(agent: Triton) -> None:
    async with aio.InferenceServerClient(agent.url, conn_timeout=DEADLINE_S) as client:
        assert await client.is_server_live()
        assert (await client.get_server_metadata())["name"] == "holdfast"
        assert await client.is_model_ready("same_bf16")
        assert (await client.get_model_metadata("mixed"))["versions"] == ["1"]
        assert (await client.get_model_config("mixed"))["name"] == "mixed"
        assert (await client.get_inference_statistics("mixed"))["model_stats"]
        assert await client.get_model_repository_index()
        for dtype, kind in KINDS.items():
            for packed in (None, "gzip", "deflate"):
                result = await client.infer(
                    *(f"same_{dtype.lower()}", [given("x", kind.values, dtype)]),
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                )
                np.testing.assert_array_equal(result.as_numpy("y"), kind.values)
        large = np.zeros((60_000, 4), np.float32)  # aiohttp says what it reads, whatever is asked
        result = await client.infer("same_fp32", [given("x", large)])
        np.testing.assert_array_equal(result.as_numpy("y"), large)
        with pytest.raises(InferenceServerException, match="no domain has the model"):
            await client.infer("unknown", [given("x", ONES)])
