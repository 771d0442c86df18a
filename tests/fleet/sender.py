"""A device as the cloud side sees it: its messages."""

from collections.abc import Iterable, Sequence

import msgspec

from agent.protocol import batch, blob
from agent.protocol.presence import Heartbeat, Presence
from agent.records import Balance, Drop, Record, Stamp
from fleet.store.cloud import Arrival

WALL_US = 1_700_000_000_000_000


class Sender:
    """Of one stream of one device."""

    def __init__(self, device: str = "press-7", epoch: str = "e1", stream: str = "a.segments"):
        self.device, self.epoch, self.stream = device, epoch, stream
        self.root = f"holdfast/v1/{device}"

    def record(self, seq: int, blob_bytes: int = 0, body: bytes | None = None) -> Record:
        body = b'{"n":%d}' % seq if body is None else body
        stamp = Stamp("boot-1", seq, WALL_US + seq % 10**9)
        return Record(self.stream, seq, "t.v1", stamp, body, blob_bytes, timebound=True)

    def batch(
        self,
        seqs: Iterable[int],
        drops: Sequence[tuple[int, int, str]] = (),
        *,
        blob_bytes: int = 0,
        live: bool = False,
    ) -> Arrival:
        return self.records([self.record(seq, blob_bytes) for seq in seqs], drops, live=live)

    def records(
        self,
        records: Sequence[Record],
        drops: Sequence[tuple[int, int, str]] = (),
        *,
        live: bool = False,
        before: int | None = None,
    ) -> Arrival:
        told = [Drop(*drop) for drop in drops]
        of = self.device, self.epoch, self.stream, records, told
        payload = batch.encode(*of, live=live, before=before)
        return Arrival(f"{self.root}/up/{self.stream}", payload)

    def piece(self, seq: int, content: bytes, start: int, end: int) -> Arrival:
        """Bytes start..end of a blob."""
        payload = blob.encode(
            *(self.device, self.epoch, self.stream, seq, start, len(content)), content[start:end]
        )
        return Arrival(f"{self.root}/blob/{self.stream}", payload)

    def presence(self, *, online: bool = True) -> Presence:
        return Presence(
            device=self.device, online=online, epoch=self.epoch, version="1", ack_from="ingest"
        )

    def heartbeat(self, ledger: Balance, status: str = "healthy") -> Heartbeat:
        return Heartbeat(
            device=self.device,
            epoch=self.epoch,
            uptime_s=1.0,
            status=status,
            conditions=[],
            ledger={self.epoch: {self.stream: ledger}},
        )


def encoded(word: Presence | Heartbeat) -> bytes:
    return msgspec.json.encode(word)
