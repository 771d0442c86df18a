"""Tensors that come as JSON: the same, read in one or in steps; what is none costs little."""

import json
import os
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.errors import RequestError
from agent.inference.engines import tensors
from agent.inference.engines.tensors import STEP_BYTES, array
from agent.inference.wire import Tensor

SEED = int(os.environ.get("HOLDFAST_SEED", "20261122"))
ROUNDS = 100_000 if os.environ.get("HOLDFAST_LONG") else 5_000
LETTERS = list('[],1 "\\a2.e-')
WORDS = ("a", "[", "]", ",", '"', "\\", '\\"', "x,y[", "", "é")
ELEMENTS: dict[str, Callable[[random.Random], Any]] = {
    "FP32": lambda chance: chance.choice([1, 2.5, -1e3]),
    "BF16": lambda chance: chance.choice([1, 2.5, -0.5]),
    "INT64": lambda chance: chance.randint(-9, 9),
    "UINT8": lambda chance: chance.randint(0, 300),
    "BOOL": lambda chance: chance.random() < 0.5,
    "BYTES": lambda chance: chance.choice(WORDS),
}


def nested(flat: list[Any], shape: list[int]) -> list[Any]:
    if len(shape) < 2:
        return flat
    size = len(flat) // shape[0]
    return [nested(flat[n * size :][:size], shape[1:]) for n in range(shape[0])]


def garbled(text: str, chance: random.Random) -> str:
    """With some letters more, less, or others."""
    letters = list(text)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(letters))
        letters[at : at + chance.randint(0, 1)] = chance.choices(LETTERS, k=chance.randint(0, 1))
    return "".join(letters)


def read(tensor: Tensor, text: bytes) -> Any:
    try:
        return array(tensor, memoryview(text)).tolist()
    except RequestError:
        return RequestError


def test_in_steps_it_is_what_it_is_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    good = 0
    for _ in range(ROUNDS):
        dtype = chance.choice(list(ELEMENTS))
        shape = [chance.randint(1, 3) for _ in range(chance.randint(1, 3))]
        flat = [ELEMENTS[dtype](chance) for _ in range(int(np.prod(shape)))]
        form = chance.choice([shape, [len(flat)], [1, *shape], [*shape, 1], shape[::-1]])
        text = json.dumps(nested(flat, form), indent=chance.choice([None, 1]))
        if chance.random() < 0.1:
            text = text.replace("], [", ", ", 1)  # two lists are one: the others are shorter
        elif chance.random() < 0.6:
            text = garbled(text, chance)
        try:
            msgspec.json.decode(text)
        except msgspec.DecodeError:
            continue  # it is read as JSON before
        tensor = Tensor("x", dtype, shape, len(text), True)
        monkeypatch.setattr(tensors, "STEP_BYTES", 1 << 20)
        whole = read(tensor, text.encode())
        monkeypatch.setattr(tensors, "STEP_BYTES", 0)
        assert read(tensor, text.encode()) == whole, (dtype, shape, text)
        good += whole is not RequestError
    assert good > ROUNDS // 10


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("flat", [True, False])
def test_a_large_one_comes_out_as_it_went_in(dtype: str, flat: bool) -> None:
    chance = random.Random(SEED)
    shape = [500, 200]
    values = [
        ELEMENTS[dtype](chance) % 256 if dtype == "UINT8" else ELEMENTS[dtype](chance)
        for _ in range(100_000)
    ]
    text = json.dumps(values if flat else nested(values, shape)).encode()
    assert len(text) > 3 * STEP_BYTES
    found = array(Tensor("x", dtype, shape, len(text), True), memoryview(text))
    if dtype == "BF16":
        found = tensors.widened(found)
    assert found.shape == (500, 200)
    assert found.ravel().tolist() == values


@pytest.mark.parametrize("dtype", ["FP32", "BYTES"])
@pytest.mark.parametrize("text", [b"[]", b"[[]]", b'""', b"1"])
def test_what_has_not_as_many_elements_is_refused_before_it_is_decoded(
    dtype: str, text: bytes
) -> None:
    body = b"[" + text + (b"," + text) * 200_000 + b"]"
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="200001 elements"):
            array(Tensor("x", dtype, [1, 4], len(body), True), memoryview(body))
        assert tracemalloc.get_traced_memory()[1] < 6 * len(body)
    finally:
        tracemalloc.stop()
