"""Archives that a command put into the outbox, each once.

Limits  : the archive is the caller's to bound.
Format  : records of stream STREAM (records.Upload, the archive as their blob), and the step of the
          command in the journal: the JSON of Kept.
Recovery: record and step are one commit: after a crash the step says whether the record is there.
"""

import sqlite3
from collections.abc import Callable

import msgspec

from agent.clock import Clock
from agent.errors import StoreDamaged
from agent.records import RecordType, Upload
from agent.store import journalrows as rows
from agent.store import streams
from agent.store.database import Database

STREAM = "support"


class Kept(Upload, frozen=True, kw_only=True):
    """An archive, and the record that has it."""

    stream: str
    seq: int


class Uploads:
    """Used on the event loop."""

    def __init__(self, database: Database, clock: Clock, kept: Callable[[], None]) -> None:
        """`kept` is called when there is more to send."""
        self._database = database
        self._clock = clock
        self._kept = kept

    async def keep(self, upload: Upload, content: bytes) -> Kept:
        """Keep an archive for its command; or what was kept for that before.

        Raises StoreFull, StoreError: then nothing is kept; StoreDamaged where nobody knows the
        command any more.
        """
        stamp = self._clock.stamp()

        def operation(connection: sqlite3.Connection) -> Kept:
            order = rows.find(connection, upload.command)
            if order is None:
                raise StoreDamaged(
                    f"command {upload.command} is no longer in the store", "order it again"
                )
            if order.step:
                return kept(order.step)
            seq = streams.append(
                connection,
                streams.stream_id(connection, STREAM),
                RecordType.SUPPORT,
                stamp,
                msgspec.json.encode(upload),
                content,
            )
            made = Kept(**msgspec.structs.asdict(upload), stream=STREAM, seq=seq)
            connection.execute(
                "UPDATE commands SET step = ? WHERE number = ?",
                (msgspec.json.encode(made).decode(), order.number),
            )
            return made

        made = await self._database.write(operation, grows=(STREAM,))
        self._kept()
        return made


def kept(step: str) -> Kept:
    """The step of a command whose archive is kept."""
    return msgspec.json.decode(step, type=Kept)
