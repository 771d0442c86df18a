"""The JSON of a request of the Open Inference Protocol, read within its bounds.

Whoever reads it has the process to himself meanwhile, live sound waits: so a list is refused when
it gets too long, and not after the whole of it was made.

Limits: JSON_BYTES_MAX, which take some tens of milliseconds; TENSORS_MAX inputs and outputs, of
AXES_MAX axes; an id has ID_MAX characters. Text up to PLAIN_BYTES_MAX holds so few things that its
lists are counted when they are there, which costs a small request nothing.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from agent.errors import RequestError, TooLarge
from agent.inference.oip_parameters import OfRequest, OfTensor, supported
from agent.inference.wire import Buffer

HEADER = "Inference-Header-Content-Length"
JSON_BYTES_MAX = 4 << 20  # an image of 224 x 224 x 3 numbers of 20 digits; what is larger goes raw
PLAIN_BYTES_MAX = 32 << 10
TENSORS_MAX = 256
AXES_MAX = 32
ID_MAX = 256  # the protocol sets none, and each answer repeats it
LENGTH_DIGITS_MAX = 20
FORM = '{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'
SEND_RAW = f"send less, or large tensors raw, behind the JSON: binary_data_size, and {HEADER}"
T = TypeVar("T")

Id = Annotated[str, Meta(max_length=ID_MAX)]


class Given(Struct, gc=False):
    """An input."""

    name: str
    shape: Annotated[list[int], Meta(max_length=AXES_MAX)]
    datatype: str
    parameters: OfTensor = OfTensor()
    data: Raw | UnsetType = UNSET


class Wanted(Struct, gc=False):
    """An output that is asked for."""

    name: str
    parameters: OfTensor = OfTensor()


Inputs = Annotated[list[Given], Meta(max_length=TENSORS_MAX)]
Outputs = Annotated[list[Wanted], Meta(max_length=TENSORS_MAX)]


class Asked(Struct, gc=False):
    """The JSON of a request."""

    inputs: Inputs
    id: Id = ""
    parameters: OfRequest = OfRequest()
    outputs: Outputs = []


class _Frame(Struct, gc=False):
    """An Asked whose lists are not read yet: a key that stands there often is read once."""

    inputs: Raw
    id: Id = ""
    parameters: OfRequest = OfRequest()
    outputs: Raw = Raw(b"[]")


class _Given(Struct, gc=False):
    """As Given."""

    name: str
    shape: Raw
    datatype: str
    parameters: OfTensor = OfTensor()
    data: Raw | UnsetType = UNSET


class Listed:
    """Reads a JSON list of at most `most` things, and stops at the one that is too many.

    msgspec's own bound is looked at when the list is there, of a body of brackets gigabytes of it.
    """

    def __init__(self, kind: Any, most: int) -> None:
        places = [(f"at_{number}", kind | UnsetType, UNSET) for number in range(most)]
        form = msgspec.defstruct("Listed", places, array_like=True, forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(form)

    def read(self, text: Buffer | Raw) -> list[Any]:
        """What is in it. Raises msgspec's errors."""
        found = msgspec.structs.astuple(self._decoder.decode(text))
        return [one for one in found if one is not UNSET]


_plain = msgspec.json.Decoder(Asked)
_frame = msgspec.json.Decoder(_Frame)
_inputs = Listed(_Given, TENSORS_MAX)
_outputs = Listed(Wanted, TENSORS_MAX)
_axes = Listed(int, AXES_MAX)


def asked_in(text: Buffer) -> Asked:
    """What a request says. Raises RequestError."""
    what = "the request"
    try:
        if len(text) <= PLAIN_BYTES_MAX:
            found = _plain.decode(text)
        else:
            frame = _frame.decode(text)
            what = "the request's inputs"
            inputs = [
                Given(one.name, _axes.read(one.shape), one.datatype, one.parameters, one.data)
                for one in _inputs.read(frame.inputs)
            ]
            what = "the request's outputs"
            found = Asked(inputs, frame.id, frame.parameters, _outputs.read(frame.outputs))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{what}: {error}", f"send {FORM}") from error
    for given in found.inputs:
        supported(given.name, given.parameters)
    for wanted in found.outputs:
        supported(wanted.name, wanted.parameters)
    return found


def json_size(length: str | None, body: Buffer) -> int:
    """How much of a body is JSON, by what its HEADER says (None: all).

    Raises RequestError, TooLarge.
    """
    size = len(body)
    if length is not None:
        digits = length.isascii() and length.isdigit() and len(length) <= LENGTH_DIGITS_MAX
        if not digits or int(length) > size:
            raise RequestError(
                f"{HEADER}: {length!r} is no length within the body of {size} bytes",
                "send the length of the JSON that comes before the raw tensors",
            )
        size = int(length)
    if size > JSON_BYTES_MAX:
        raise TooLarge(f"JSON of {size} bytes is above {JSON_BYTES_MAX}", SEND_RAW)
    return size
