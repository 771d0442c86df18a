"""What comes out of a broker, in which order, and how much of it comes again: a plain client."""

from agent.protocol import batch, blob
from tests.listener import Listener

DOORS = ("+/+/+/up/#", "+/+/+/blob/#")


class Arrivals(Listener):
    """Listens while its context lasts; `heads` are the batches so far, in the order they came.

    `again_bytes` of all `bytes` were sent before: of a piece those that it has in common with
    another one, of a batch the part of its records that came already.
    """

    def __init__(self, port: int) -> None:
        self.heads: list[batch.Header] = []
        self.bytes = self.again_bytes = 0
        self._records: set[tuple[str, str, int]] = set()
        self._ends: dict[tuple[str, str, int], int] = {}  # of a blob: how far it came
        super().__init__(port, *DOORS)

    def beyond(self, stream: str, seq: int) -> list[bool]:
        """Of each batch of a stream, whether it is of later records than this one."""
        return [head.last > seq for head in list(self.heads) if head.stream == stream]

    def hear(self, topic: str, payload: bytes, *, retain: bool) -> None:
        self.bytes += len(payload)
        if topic.split("/")[3] == "up":
            self._batch(payload)
        else:
            self._piece(payload)

    def _batch(self, payload: bytes) -> None:
        head, events = batch.decode(payload)
        self.heads.append(head)
        records = {(head.epoch, head.stream, event.sequence) for event in events}
        if records:
            known = records & self._records
            self.again_bytes += len(payload) * len(known) // len(records)
            self._records |= records

    def _piece(self, payload: bytes) -> None:
        head, data = blob.decode(payload)
        key = (head.epoch, head.stream, head.seq)
        end, came = head.start + len(data), self._ends.get(key, 0)
        self.again_bytes += max(0, min(end, came) - head.start)
        self._ends[key] = max(end, came)
