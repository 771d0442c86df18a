"""The records of a batch as rows of the table, and which of them cannot be stored, with a cause."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from agent.protocol import batch
from fleet.store.arrivals import BLOB_BYTES_MAX, NAME_CHARS_MAX, Brought, Refusal
from fleet.store.coverage import runs

COLUMNS = (
    *("stream", "seq", "type", "time_us", "timebound"),
    *("boot", "mono_ns", "blob_bytes", "stored_us", "body"),
)
INTEGER_MAX = 2**63 - 1  # of a database
_EPOCH, _US = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
# SQLite is given a bytearray as it is; of bytes it first asks whether somebody adapts them.
Record = tuple[int, int, str, int, bool, str, int, int, int, bytearray]


def fit(
    stream: int, one: Brought, events: Sequence[batch.Event], now_us: int
) -> tuple[list[Record], Sequence[batch.Event], list[Refusal]]:
    """The rows of all that can be stored, those events, and the refusals of the others."""
    try:
        return _rows(stream, events, now_us), events, []
    except (ValueError, TypeError, OverflowError):
        rows, fitting, refused = list[Record](), list[batch.Event](), list[Refusal]()
    for event in events:
        try:
            rows += _rows(stream, [event], now_us)
            fitting.append(event)
        except (ValueError, TypeError, OverflowError) as error:
            refused.append(refusal(one, event, str(error)))
    return rows, fitting, refused


def _rows(stream: int, events: Sequence[batch.Event], now_us: int) -> list[Record]:
    """The records as the table has them. Raises ValueError, TypeError, OverflowError."""
    for word in {event.type for event in events} | {event.boot for event in events}:
        if not word.isprintable() or len(word) > NAME_CHARS_MAX:
            raise ValueError(f"{word[:NAME_CHARS_MAX]!r} is no type and no boot id")
    rows = [
        (
            stream,
            e.sequence,
            e.type,
            (datetime.fromisoformat(e.time) - _EPOCH) // _US,
            e.timebound,
            e.boot,
            e.monotonic,
            e.blobsize,
            now_us,
            bytearray(e.data),
        )
        for e in events
    ]
    b"".join([row[-1] for row in rows]).decode()  # else it is not JSON
    if not all(0 <= e.blobsize <= BLOB_BYTES_MAX for e in events):
        raise ValueError(f"a blob has 0 to {BLOB_BYTES_MAX} bytes")
    if not all(-INTEGER_MAX <= e.monotonic <= INTEGER_MAX for e in events):
        raise ValueError("a monotonic time has 64 bits at most")
    return rows


def refusal(one: Brought, event: batch.Event, cause: str) -> Refusal:
    """Why one record of a batch is not stored."""
    seq = event.sequence
    cause = f"{one.name[1]} {one.name[2]} #{seq}: {cause}"
    topic, payload, device = one.arrival.topic, bytes(event.data), one.name[0]
    return Refusal(topic, cause, payload, device, one.name, seq, seq)


def refusals_of(one: Brought, events: Sequence[batch.Event], cause: str) -> list[Refusal]:
    """As `refusal`, of many records of a batch: one for each run of seqs. The first has all that
    came."""
    topic, device, payload, told = one.arrival.topic, one.name[0], one.arrival.payload, []
    for first, last in runs(event.sequence for event in events):
        word = f"{one.name[1]} {one.name[2]} #{first} to #{last}: {cause}"
        told.append(Refusal(topic, word, payload, device, one.name, first, last))
        payload = b""
    return told
