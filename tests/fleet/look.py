"""The database as it lies there: asked directly, past the code that wrote it."""

from collections.abc import Sequence
from typing import Any

from fleet.store.cloud import Cloud


async def rows(cloud: Cloud, sql: str) -> list[tuple[Any, ...]]:
    """What a query answers with."""
    async with cloud.database.begin() as transaction:
        return [tuple(row) for row in await transaction.fetch(sql)]


async def seqs(cloud: Cloud, device: str) -> list[int]:
    """The seqs of a device's records, in the order of seq; each row, so that twice shows."""
    found: Sequence[tuple[Any, ...]] = await rows(
        cloud, f"SELECT seq FROM events WHERE device = '{device}' ORDER BY epoch, stream, seq"
    )
    return [seq for (seq,) in found]


async def content(cloud: Cloud, seq: int, stream: int = 1) -> bytes:
    """A blob, joined; `stream` is the row's id."""
    asked = f"SELECT content FROM pieces WHERE stream = {stream} AND seq = {seq} ORDER BY start"
    return b"".join(bytes(piece) for (piece,) in await rows(cloud, asked))
