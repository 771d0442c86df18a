"""The FLAC of a segment on its way into the store, while the segment is still open.

Limits  : a draft holds whole pieces (blobs.py), all but the first: that one says how long the FLAC
          is, so it comes last. A source has one draft at a time. One step of removing a draft takes
          out REMOVE_MAX pieces.
Format  : table drafts (sql/0007.sql) and the draft's pieces in chunks, under the number that its
          record will name.
Recovery: a draft becomes a record's blob in the transaction that keeps the record (`adopt`). Until
          then it belongs to nobody: what a crash or an error leaves is removed (`forget`) before
          its segment is made again.
"""

import sqlite3

from msgspec import Struct

from agent.errors import StoreDamaged
from agent.store import blobs
from agent.store.blobs import CHUNK_BYTES_MAX
from agent.store.database import Database

REMOVE_MAX = 64  # pieces in one commit: 4 MiB


class Draft(Struct, frozen=True):
    """A draft as far as it is in the store: its blob's number, NONE before the first piece, and
    the number of the piece that comes next."""

    source: str
    blob: int = blobs.NONE
    next: int = 1


class Drafted(Struct, frozen=True):
    """A FLAC whose middle is a draft: its first piece, and what comes behind the draft."""

    draft: Draft
    first: bytes
    rest: bytes

    @property
    def size_bytes(self) -> int:
        """Of the whole FLAC."""
        return len(self.first) + (self.draft.next - 1) * CHUNK_BYTES_MAX + len(self.rest)


class Drafts:
    """Used from the event loop's thread alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def extend(self, draft: Draft, content: bytes) -> Draft:
        """Keep the next pieces, `content` being whole ones; the draft with them.

        Raises StoreFull and StoreError as `Spool.keep` does, StoreDamaged when the draft is gone.
        """

        def operation(connection: sqlite3.Connection) -> Draft:
            blob = draft.blob or blobs.unused(connection)
            after = draft.next + len(content) // CHUNK_BYTES_MAX
            if draft.blob == blobs.NONE:
                row = (blob, draft.source, after)
                connection.execute("INSERT INTO drafts VALUES (?, ?, ?)", row)
            else:
                _must_be(connection, "UPDATE drafts SET next = ?", draft, after)
            blobs.put(connection, blob, draft.next, blobs.pieces(content))
            return Draft(draft.source, blob, after)

        return await self._database.write(operation)

    async def piece(self, draft: Draft, number: int) -> bytes:
        """A piece that is in the store. Raises StoreDamaged."""
        start = number * CHUNK_BYTES_MAX
        content = await self._database.read(
            lambda connection: blobs.read(connection, draft.blob, start, CHUNK_BYTES_MAX)
        )
        if len(content) != CHUNK_BYTES_MAX:
            raise StoreDamaged(f"piece {number} of a draft of {draft.source} is missing")
        return content

    async def forget(self, source: str | None = None) -> None:
        """Remove the drafts of a source, or all, in steps of a commit each. Raises StoreError."""
        while await self._database.write(lambda connection: _removed_some(connection, source)):
            pass


def adopt(connection: sqlite3.Connection, drafted: Drafted) -> int:
    """Complete the draft with what is not in the store yet; its number, now the caller's.

    Raises StoreDamaged when the draft is gone.
    """
    draft = drafted.draft
    _must_be(connection, "DELETE FROM drafts", draft)
    blobs.put(connection, draft.blob, 0, [drafted.first])
    blobs.put(connection, draft.blob, draft.next, blobs.pieces(drafted.rest))
    return draft.blob


def _must_be(connection: sqlite3.Connection, change: str, draft: Draft, *values: int) -> None:
    """Change the draft's row; a file that was opened anew may know nothing of it."""
    key = (draft.blob, draft.source, draft.next)
    changed = connection.execute(
        f"{change} WHERE blob = ? AND source = ? AND next = ?", (*values, *key)
    )
    if changed.rowcount != 1:
        raise StoreDamaged(
            f"the draft of a segment of {draft.source} is no longer in the store",
            "nothing to do: the segment is made again from its raw audio",
        )


def _removed_some(connection: sqlite3.Connection, source: str | None) -> bool:
    """Take some pieces out; False when there was nothing to remove.

    The row goes with the last piece: without a piece, the number is the next blob's.
    """
    row = connection.execute(
        "SELECT blob FROM drafts WHERE source = coalesce(?, source) LIMIT 1", (source,)
    ).fetchone()
    if row is None:
        return False
    if not blobs.remove_some(connection, row[0], REMOVE_MAX):
        connection.execute("DELETE FROM drafts WHERE blob = ?", row)
    return True
