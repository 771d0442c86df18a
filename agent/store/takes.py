"""The takes: how far each recording is taken in, and whether all of it has been heard.

Limits  : of a source by the API, TAKES_MAX takes that have ended are remembered; a recording whose
          take is forgotten is taken in anew when it comes again. A source that rests is out of the
          ledger, and all its takes are forgotten.
Format  : table takes (sql/0001.sql). What the API takes in has an identity that begins with POSTED
          and is kept when the source is absent, so that the same content is the same take.
Recovery: a take that a crash broke off is ended at the next start (`Spool.end_absent`), and goes on
          where it was when its content comes again.
"""

import sqlite3
from collections.abc import Sequence

from agent.records import SEQ_MAX, Range, Take, raw_stream, segments_stream
from agent.store import streams
from agent.store.database import Database

POSTED = "sha256:"
TAKES_MAX = 1000


class Takes:
    """Looks at takes; used from the event loop's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def epoch(self) -> str:
        """The identity of the store: a take's number means something in it alone."""
        return self._database.epoch

    async def known(self) -> dict[str, bool]:
        """Every source of which this file has ever had sound, and whether it rests."""

        def operation(connection: sqlite3.Connection) -> dict[str, bool]:
            suffix = raw_stream("")
            rows = connection.execute("SELECT name, resting FROM streams WHERE epoch = ''")
            return {
                name.removesuffix(suffix): bool(rests)
                for name, rests in rows
                if name.endswith(suffix)
            }

        return await self._database.read(operation)

    async def rest(self, sources: Sequence[str]) -> str | None:
        """Let the first of these of which nothing is held rest; which one that is, if any.

        Its streams leave the ledger until it has sound again, and its takes are forgotten.
        """

        def operation(connection: sqlite3.Connection) -> str | None:
            found = next((one for one in sources if not _held(connection, one)), None)
            if found is not None:
                connection.execute(
                    "UPDATE streams SET resting = 1 WHERE epoch = '' AND name IN (?, ?)",
                    _streams(found),
                )
                connection.execute("DELETE FROM takes WHERE source = ?", (found,))
            return found

        return await self._database.write(operation)

    async def find(self, source: str, take: int) -> Take | None:
        """A take that is remembered."""

        def operation(connection: sqlite3.Connection) -> Take | None:
            row = connection.execute(
                "SELECT name, samples, ended FROM takes WHERE source = ? AND id = ?",
                (source, min(take, SEQ_MAX)),
            ).fetchone()
            return row and Take(take, source, row[0], row[1], bool(row[2]))

        return await self._database.read(operation)

    async def waits(self, source: str, take: int) -> bool:
        """Whether sound of this take has not been heard to its end; dead letters aside."""

        def operation(connection: sqlite3.Connection) -> bool:
            row = connection.execute(
                "SELECT id FROM streams WHERE epoch = '' AND name = ?", (raw_stream(source),)
            ).fetchone()
            if row is None:
                return False
            heard = connection.execute(
                "SELECT next_seq FROM positions WHERE source = ?", (source,)
            ).fetchone()
            first = heard[0] if heard else 1
            keys = streams.keys(row[0], Range(first, streams.SEQ_MAX))
            found = connection.execute(
                "SELECT 1 FROM records WHERE id BETWEEN ? AND ? AND substr(body, 1, ?) = ? LIMIT 1",
                (*keys, len(_beginning(take)), _beginning(take)),
            )
            return found.fetchone() is not None

        return await self._database.read(operation)

    async def forget_old(self, source: str) -> None:
        """Forget the oldest of what the API took in."""
        await self._database.write(
            lambda connection: connection.execute(
                "DELETE FROM takes WHERE id IN (SELECT id FROM takes WHERE source = ? AND ended"
                " AND identity GLOB ? ORDER BY id DESC LIMIT -1 OFFSET ?)",
                (source, f"{POSTED}*", TAKES_MAX),
            )
        )


def _streams(source: str) -> tuple[str, str]:
    return raw_stream(source), segments_stream(source)


def _held(connection: sqlite3.Connection, source: str) -> bool:
    """Whether anything of a source is held."""
    found = connection.execute(
        "SELECT 1 FROM streams WHERE epoch = '' AND name IN (?, ?) AND held LIMIT 1",
        _streams(source),
    )
    return found.fetchone() is not None


def _beginning(take: int) -> bytes:
    """How the body of each raw record of this take begins; see records.Raw."""
    return b'{"take":%d,' % take
