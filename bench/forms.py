"""How a tensor travels: the forms of a request that the servers understand, ready to be sent.

Every model here has one float32 input `x` and one float32 output `y`. Values are `array("f")`:
whoever measures memory must not map numpy itself.
"""

from array import array
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

Floats = array  # of "f"
FLOAT_BYTES = 4
OCTETS = "application/octet-stream"
JSON = "application/json"


class Form(Struct, frozen=True):
    """How to write a request for `model` with a tensor of `shape`, and how to read the answer."""

    write: Callable[[str, tuple[int, ...], "Floats[float]"], bytes]
    read: Callable[[bytes, int], "Floats[float]"]
    varies: bool = False  # answers to one model are of several lengths


def post(path: str, body: bytes, content_type: str, **headers: object) -> bytes:
    """A request as it goes over the wire; an underscore in a header's name is a hyphen."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _open_binary(model: str, shape: tuple[int, ...], values: "Floats[float]") -> bytes:
    """The Open Inference Protocol with its binary extension, in and out."""
    content = values.tobytes()
    tensor = {"name": "x", "shape": shape, "datatype": "FP32"}
    head = msgspec.json.encode(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(content)}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    )
    path = f"/v2/models/{model}/infer"
    return post(path, head + content, OCTETS, Inference_Header_Content_Length=len(head))


def _open_json(model: str, shape: tuple[int, ...], values: "Floats[float]") -> bytes:
    """The Open Inference Protocol, flat numbers."""
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": _short(values)}
    return post(f"/v2/models/{model}/infer", msgspec.json.encode({"inputs": [tensor]}), JSON)


def _octets(_: str, __: tuple[int, ...], values: "Floats[float]") -> bytes:
    """Nothing but the tensor's bytes."""
    return post("/infer", values.tobytes(), OCTETS)


def _short(values: "Floats[float]") -> list[float]:
    """As many digits as a float32 has: a client would not send the noise of a double."""
    return [float(f"{value:.9g}") for value in values]


def _last_bytes(body: bytes, size: int) -> "Floats[float]":
    """The one output is the end of the body, whatever is before it."""
    return array("f", body[-size * FLOAT_BYTES :])


def _outputs_data(body: bytes, _: int) -> "Floats[float]":
    outputs: list[dict[str, Any]] = msgspec.json.decode(body)["outputs"]
    return array("f", outputs[0]["data"])


OPEN_BINARY = Form(_open_binary, _last_bytes)
OPEN_JSON = Form(_open_json, _outputs_data, varies=True)
OPEN_VARYING = Form(_open_binary, _last_bytes, varies=True)  # heads that carry an id
OCTETS_ONLY = Form(_octets, _last_bytes)
