"""The parameters of a request, of its inputs and outputs: Triton's, and `class`.

Those that nobody here knows are passed over; what is known and cannot be done is refused.
"""

from msgspec import Struct

from agent.errors import RequestError
from agent.inference.domains.work import Class
from agent.inference.sequences import Step

TIMEOUT_US_MAX = 10**15
SHOWN_MAX = 80


# Parameters that nobody here knows are passed over, and the known ones are no lists: millions of
# small things in a request would hold up everybody else. `gc=False`: and so would looking for
# circles in it, of which there are none.
Plain = bool | int | float | str | None


class OfTensor(Struct, frozen=True, gc=False):
    """Parameters of an input or an output."""

    binary_data_size: Plain = None
    binary_data: Plain = None
    classification: Plain = None  # these two are Triton's, and refused
    shared_memory_region: Plain = None


class OfRequest(Struct, frozen=True, gc=False, rename={"klass": "class"}):
    """Parameters of a request."""

    klass: Plain = None
    priority: Plain = None
    timeout: Plain = None
    sequence_id: Plain = 0
    sequence_start: Plain = False
    sequence_end: Plain = False
    binary_data_output: Plain = None


def supported(name: str, told: OfTensor) -> None:
    """Refuse what of a tensor would otherwise be passed over in silence. Raises RequestError."""
    if told.shared_memory_region is not None:
        raise RequestError(
            f"tensor {shown(name)}: shared_memory_region: no shared memory is taken here",
            "send the tensor in the body: binary_data_size",
        )
    if told.classification not in (None, 0):
        raise RequestError(
            f"output {shown(name)}: classification: the classes of an output are not picked here",
            "ask for the whole output, and take the largest of it",
        )


def as_raw(said: Plain, else_: bool) -> bool:
    """Whether an output is wanted raw; `else_` where its own parameters do not say."""
    return else_ if said is None else said is True


def klass(name: Plain, priority: Plain) -> Class | None:
    """Triton's `priority`: 1 is the most urgent, 0 as the model has it; `class` counts first."""
    if name is None:
        if priority is not None and (type(priority) is not int or priority < 0):
            raise RequestError(
                f"parameters.priority: {shown(priority)} is no whole number from 0",
                "send 1 for the most urgent, 2, 3 for what may wait, or parameters.class",
            )
        return Class(min(priority - 1, max(Class))) if priority else None
    try:
        return Class[str(name).upper()]
    except KeyError:
        known = ", ".join(one.name.lower() for one in Class)
        raise RequestError(f"parameters.class: unknown {shown(name)}", f"known: {known}") from None


def timeout_s(value: Plain) -> float | None:
    """Triton's parameter `timeout` is in microseconds; 0 is none of its own."""
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not int or not 0 < value <= TIMEOUT_US_MAX:
        raise RequestError(
            f"parameters.timeout: {shown(value)} is no number of microseconds",
            "send a whole number",
        )
    return value / 1e6


def step(parameters: OfRequest) -> Step | None:
    """Which step of a sequence it is; Triton's 0 is no sequence."""
    sequence = parameters.sequence_id
    if sequence in (0, ""):
        return None
    if type(sequence) not in (int, str) or len(str(sequence)) > 128:
        raise RequestError("parameters.sequence_id: expected a number or a short text", "send one")
    start, end = parameters.sequence_start, parameters.sequence_end
    if type(start) is not bool or type(end) is not bool:
        raise RequestError(
            "parameters.sequence_start, sequence_end: expected true or false", "send one"
        )
    return Step(str(sequence), start, end)


def shown(value: Plain) -> str:
    """What a client sent, as an error repeats it."""
    return repr(value) if len(repr(value)) <= SHOWN_MAX else f"{repr(value)[:SHOWN_MAX]}…"
