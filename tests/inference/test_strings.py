"""Tensors of strings: what little of a body may become many of them."""

import tracemalloc

import msgspec
import pytest

from agent.errors import RequestError
from agent.inference import oip
from agent.inference.engines.tensors import array
from agent.inference.wire import Tensor


def test_more_than_the_agent_takes_apart_itself_are_refused() -> None:
    for elements, taken in ((oip.STRINGS_MAX, True), (oip.STRINGS_MAX + 1, False)):
        about = {"name": "t", "shape": [elements], "datatype": "BYTES"}
        raw = {"inputs": [{**about, "parameters": {"binary_data_size": 4}}]}
        as_json = {"inputs": [{**about, "data": ["a"]}]}
        for given, rest in ((raw, bytes(4)), (as_json, b"")):
            head = msgspec.json.encode(given)
            with pytest.raises(RequestError, match="no BYTES|not the" if taken else "above"):
                oip.tensors(str(len(head)), head + rest)


def test_no_more_are_made_than_the_shape_says() -> None:
    many = memoryview(bytes(4_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="not the 1 elements"):
            array(Tensor("t", "BYTES", [1], len(many)), many)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
