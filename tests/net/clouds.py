"""The cloud as the coordinator sees it: a process that can be killed, and a database."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
from msgspec import Struct

from agent.records import Range
from tests.outside import ROOT

FLEET = Path(sys.executable).with_name("holdfast-fleet")
Name = tuple[str, str]  # epoch and stream


class Stored(Struct, frozen=True):
    """A record that is stored whole."""

    seq: int
    body: bytes
    blob: bytes


class Ingest:
    """`holdfast-fleet ingest` in a process; its log is a file."""

    def __init__(self, folder: Path, port: int, name: str, database: str) -> None:
        self.command = [
            *(str(FLEET), "ingest", "--broker", f"mqtt://127.0.0.1:{port}", "--client-id", name),
            *("--database", database, "--ack-s", "0.05", "--connect-timeout-s", "2"),
        ]
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it finds its broker by itself."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=ROOT)

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def dead(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.poll() is not None

    def fell(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None


class Fleet:
    """Ingests over one database, which is read past the code that writes it."""

    FIND = (
        "FROM streams s JOIN devices d ON d.id = s.device"
        " WHERE d.name = ? AND s.epoch = ? AND s.name = ?"
    )

    def __init__(self, folder: Path, port: int, device: str, database: str, count: int) -> None:
        self.parts = [Ingest(folder, port, f"ingest-{n}", database) for n in range(count)]
        self._device = device

    def start(self) -> None:
        """Start those that do not run."""
        for part in self.parts:
            if part.dead():
                part.start()

    def kill(self) -> None:
        """kill -9."""
        for part in self.parts:
            part.kill()

    def dead(self) -> bool:
        """Whether one of them does not run."""
        return any(part.dead() for part in self.parts)

    def count(self) -> int:
        """How many records are stored, of all streams, whole or not."""
        rows = self._ask("SELECT count(*) FROM records")
        return int(rows[0][0]) if rows else 0

    def names(self) -> set[Name]:
        """The streams it knows of."""
        return set(self._ask("SELECT epoch, name FROM streams"))

    def stored(self, name: Name) -> list[Stored]:
        """What is stored whole of a stream, each row of it, by seq."""
        which = (self._device, *name)
        pieces: dict[int, bytes] = {}
        for seq, content in self._ask(
            "SELECT seq, content FROM pieces WHERE stream ="
            f" (SELECT s.id {self.FIND}) ORDER BY seq, start",
            which,
        ):
            pieces[seq] = pieces.get(seq, b"") + content
        rows = self._ask(
            "SELECT seq, body, blob_bytes FROM records WHERE stream ="
            f" (SELECT s.id {self.FIND}) ORDER BY seq",
            which,
        )
        found = [(Stored(seq, body, pieces.get(seq, b"")), size) for seq, body, size in rows]
        return [one for one, size in found if len(one.blob) == size]

    def told(self, name: Name) -> list[Range]:
        """The ranges that it was told will never come."""
        rows = self._ask(
            f"SELECT first, last FROM told WHERE stream = (SELECT s.id {self.FIND})",
            (self._device, *name),
        )
        return [Range(*row) for row in rows]

    def _ask(self, sql: str, values: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows; none while there is no database yet. A value's place is a `?`."""
        raise NotImplementedError


class Sqlite(Fleet):
    """One ingest into a file."""

    def __init__(self, folder: Path, port: int, device: str) -> None:
        self._path = folder / "fleet.db"
        super().__init__(folder, port, device, f"sqlite:///{self._path}", 1)

    def _ask(self, sql: str, values: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(self._path)) as db:
            try:
                return db.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):  # it was killed before it made them
                    raise
                return []


class Postgres(Fleet):
    """Two ingests side by side into one PostgreSQL."""

    def __init__(self, folder: Path, port: int, device: str, url: str) -> None:
        self._url = url
        super().__init__(folder, port, device, url, 2)

    def _ask(self, sql: str, values: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        for number in range(1, len(values) + 1):
            sql = sql.replace("?", f"${number}", 1)
        return asyncio.run(self._fetched(sql, values))

    async def _fetched(self, sql: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self._url)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *values)]
        except asyncpg.UndefinedTableError:
            return []
        finally:
            await connection.close()
