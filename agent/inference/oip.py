"""The Open Inference Protocol v2: an HTTP body to a Request, a Response to an HTTP body.

Tensors come as JSON (`data`), or raw behind the JSON, whose length then stands in the header
Inference-Header-Content-Length (the binary tensor data extension). Only the frame is read here: the
tensors are taken apart, and put together, by the worker.

Limits: BODY_BYTES_MAX for a request; of its JSON those of oip_asked.py.
"""

import math
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from agent.errors import RequestError
from agent.inference.domains.work import Class, Result
from agent.inference.engines.tensors import array, content
from agent.inference.oip_asked import FORM, Asked, Given, asked_in, json_size
from agent.inference.oip_parameters import as_raw, klass, shown, step, timeout_s
from agent.inference.scheduler import Request
from agent.inference.sequences import Step
from agent.inference.wire import Buffer, Infer, Inferred, Tensor

BODY_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 64 << 10  # of what a worker is told beside the tensors
STRINGS_MAX = 1 << 20  # of a tensor that is taken apart here: 14 million empty ones took 3 GB
KEPT_MAX = 256
KEPT_BYTES_MAX = 2048
DTYPES: tuple[str, ...] = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)


class Made(Struct, omit_defaults=True):
    """An output."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Raw | UnsetType = UNSET


class Answered(Struct):
    """The JSON of a response."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any]
    outputs: list[Made]


class Plan(Struct):
    """What the JSON of a request says: all but its raw tensors."""

    head: Raw  # an encoded wire.Infer
    id: str
    size_bytes: int
    raw_bytes: int  # of the tensors that follow the JSON
    rows: int
    klass: Class | None
    timeout_s: float | None
    step: Step | None
    data: list[Buffer] | None = None  # the inputs, where some came in the JSON


class Exchange(NamedTuple):
    """A request, and what its answer has to repeat."""

    request: Request
    id: str


class Bodies:
    """Reads and writes bodies.

    Clients ask the same with other tensors: the plans of JSON that has no tensors in it, and the
    JSON of answers, are remembered, KEPT_MAX of each, none longer than KEPT_BYTES_MAX.
    """

    def __init__(self) -> None:
        self._plans: dict[bytes, Plan] = {}
        self._heads: dict[tuple[bytes, str, str, str, bool], bytes] = {}

    def parsed(
        self, model: str, version: int | None, header_length: str | None, body: Buffer
    ) -> Exchange:
        """What a body asks. Raises RequestError."""
        size = json_size(header_length, body)
        text = bytes(memoryview(body)[:size])
        plan = self._plans.get(text) if size <= KEPT_BYTES_MAX else None
        if plan is None:
            plan = self._plan(text, memoryview(body)[size:])
        rest = len(body) - size
        if rest != plan.raw_bytes:
            raise RequestError(
                f"{rest} bytes follow the JSON, its tensors take {plan.raw_bytes}",
                "send as many as their binary_data_size say",
            )
        pieces = plan.data or [memoryview(body)[size:]]
        request = Request(
            *(model, plan.head, pieces, plan.size_bytes, plan.rows),
            *(plan.klass, plan.timeout_s, plan.step, version),
        )
        return Exchange(request, plan.id)

    def answer(self, id: str, result: Result) -> tuple[int | None, list[Buffer]]:
        """The JSON's length if raw tensors follow it, and the body."""
        key = (bytes(result.head), result.model, result.ep, id, result.cached)
        known = self._heads.get(key)
        if known is not None:
            return len(known), [known, result.body]
        return self._made(key, result)

    def _plan(self, text: bytes, raw: memoryview) -> Plan:
        asked = asked_in(text)
        tensors, data, raw_bytes = _inputs(asked, raw)
        infer = Infer(tensors, [one.name for one in asked.outputs], _json_outputs(asked))
        head = _packer.encode(infer)
        if len(head) > HEAD_BYTES_MAX:
            raise RequestError(
                f"names and shapes take {len(head)} bytes, above {HEAD_BYTES_MAX}", f"send {FORM}"
            )
        shape, told = asked.inputs[0].shape if asked.inputs else [], asked.parameters
        plan = Plan(
            Raw(head),
            asked.id,
            sum(one.size_bytes for one in tensors),
            raw_bytes,
            rows_of(shape),
            klass(told.klass, told.priority),
            timeout_s(told.timeout),
            step(told),
            data,
        )
        if data is None and plan.step is None and not plan.id and len(text) <= KEPT_BYTES_MAX:
            _remember(self._plans, text, plan)
        return plan

    def _made(
        self, key: tuple[bytes, str, str, str, bool], result: Result
    ) -> tuple[int | None, list[Buffer]]:
        name, _, rest = result.model.partition("/")
        version, _, digest = rest.partition("@")
        outputs: list[Made] = []
        raw: list[Buffer] = []
        at = 0
        for one in _unpacker.decode(result.head).outputs:
            piece = result.body[at : at + one.size_bytes]
            at += one.size_bytes
            made = Made(one.name, one.dtype, one.shape)
            if one.json:
                made.data = Raw(piece)
            else:
                made.parameters = {"binary_data_size": one.size_bytes}
                raw.append(piece)
            outputs.append(made)
        stamp: dict[str, Any] = {"ep": result.ep, "digest": digest}
        if result.cached:
            stamp["cached"] = True
        head = _encoder.encode(Answered(name, version, key[3], stamp, outputs))
        if not raw:
            return None, [head]
        if len(raw) == len(outputs) and not key[3] and len(head) <= KEPT_BYTES_MAX:
            _remember(self._heads, key, head)
        return len(head), [head, *raw]


def tensors(
    header_length: str | None, body: Buffer
) -> tuple[list[tuple[Tensor, bytes]], list[str]]:
    """The inputs of a request in their raw form, and the outputs it names (none: all).

    All of it is done here, which takes its time. Raises RequestError.
    """
    size = json_size(header_length, body)
    raw = memoryview(body)[size:]
    asked = asked_in(memoryview(body)[:size])
    heads, data, raw_bytes = _inputs(asked, raw)
    if raw_bytes != len(raw):
        raise RequestError(
            f"{len(raw)} bytes follow the JSON, its tensors take {raw_bytes}",
            "send as many as their binary_data_size say",
        )
    pieces = data if data is not None else _cut(heads, raw)
    found: list[tuple[Tensor, bytes]] = []
    for head in heads:
        if head.dtype == "BYTES" and math.prod(head.shape) > STRINGS_MAX:
            raise RequestError(
                f"input {shown(head.name)}: {math.prod(head.shape)} elements of BYTES are above "
                f"{STRINGS_MAX}",
                "send fewer at once",
            )
    for head, piece in zip(heads, pieces, strict=True):
        plain = bytes(content(array(head, memoryview(piece)), as_json=False))
        found.append((Tensor(head.name, head.dtype, head.shape, len(plain)), plain))
    return found, [one.name for one in asked.outputs]


def rows_of(shape: list[int]) -> int:
    """How many rows a call brings whose first input is so; what is empty has none, however long."""
    return 0 if 0 in shape else shape[0] if shape else 1


def _cut(heads: list[Tensor], raw: memoryview) -> list[Buffer]:
    pieces: list[Buffer] = []
    at = 0
    for one in heads:
        pieces.append(raw[at : at + one.size_bytes])
        at += one.size_bytes
    return pieces


K = TypeVar("K")
V = TypeVar("V")
_encoder = msgspec.json.Encoder()
_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder(Inferred)


def _remember(kept: dict[K, V], key: K, value: V) -> None:
    if len(kept) >= KEPT_MAX:
        del kept[next(iter(kept))]
    kept[key] = value


def _inputs(asked: Asked, raw: memoryview) -> tuple[list[Tensor], list[Buffer] | None, int]:
    """The inputs; their bytes, if some of them are in the JSON; how many follow it."""
    tensors: list[Tensor] = []
    pieces: list[Buffer] = []
    at = 0
    for one in asked.inputs:
        if one.datatype not in DTYPES:
            raise _wrong(one, f"datatype {shown(one.datatype)} is not one of {', '.join(DTYPES)}")
        if any(size < 0 for size in one.shape):
            raise _wrong(one, "its shape is none")
        if math.prod(size or 1 for size in one.shape) > BODY_BYTES_MAX:
            raise _wrong(one, "its shape is too large")
        size = one.parameters.binary_data_size
        if size is not None:
            if type(size) is not int or not 0 <= size <= BODY_BYTES_MAX:
                raise _wrong(one, f"binary_data_size: {shown(size)} is no number of bytes")
            pieces.append(raw[at : at + size])
            tensors.append(Tensor(one.name, one.datatype, one.shape, size))
            at += size
        elif isinstance(one.data, Raw):
            pieces.append(memoryview(one.data))
            tensors.append(Tensor(one.name, one.datatype, one.shape, len(pieces[-1]), True))
        else:
            raise _wrong(one, "has neither data nor binary_data_size")
    return tensors, pieces if any(one.json for one in tensors) else None, at


def _json_outputs(asked: Asked) -> list[str]:
    """The outputs that are wanted as JSON; "*" stands for all that are not named."""
    raw = asked.parameters.binary_data_output is True
    if not asked.outputs:
        return [] if raw else ["*"]
    return [o.name for o in asked.outputs if not as_raw(o.parameters.binary_data, raw)]


def _wrong(one: Given, what: str) -> RequestError:
    return RequestError(f"input {shown(one.name)}: {what}", f"send {FORM}")
