"""The controller's answers to devices that ask for content over MQTT (agent/protocol/content.py).

Limits  : a piece in memory; an ask is answered with SPAN_BYTES_MAX at most, however much it wants.
Recovery: nothing is kept. Two controllers may answer the same ask: the device takes each byte once.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from agent.errors import ProtocolError
from agent.protocol import content
from agent.protocol.topics import Topics

SPAN_BYTES_MAX = 8 << 20
HEADER_BYTES = 2048  # of a payload, for all but the piece


class Publisher(Protocol):
    """What sends: fleet.mqtt.connection.Connection, or a library of the user's own."""

    def room_bytes(self, topic: str) -> int:
        """The largest payload to this topic that the broker takes."""

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = True
    ) -> "asyncio.Future[None]":
        """Send with QoS 1; returns when there is room for the next."""


class Pieces:
    """Of one repository: the folder with `metadata` and `targets`."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository.resolve()

    async def answer(self, device: str, payload: bytes, prefix: str, link: Publisher) -> int:
        """Answer one ask of a device; how many bytes of content went.

        Raises ProtocolError for what is no ask, LinkError when the connection ends.
        """
        topic, sent = Topics(prefix, device).content, 0
        pieces = self.pieces(payload, link.room_bytes(topic))
        while piece := await asyncio.to_thread(next, pieces, None):
            await link.publish(topic, piece, retain=False)
            sent += len(piece)
        return sent

    def pieces(self, payload: bytes, payload_bytes_max: int) -> Iterator[bytes]:
        """The payloads that answer an ask, none of them larger than that. Raises ProtocolError."""
        ask = content.decode_ask(payload)
        piece_bytes = min(ask.piece_bytes_max, payload_bytes_max - HEADER_BYTES)
        if piece_bytes < 1:
            raise ProtocolError(f"payloads of {payload_bytes_max} bytes have no room for a piece")
        path = self._repository / ask.path
        try:
            if not path.resolve().is_relative_to(self._repository):
                raise FileNotFoundError
            file = path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            yield content.encode_none(ask.path)
            return
        except OSError as error:
            yield content.encode_none(ask.path, error.strerror or "it cannot be read")
            return
        with file:
            size = file.seek(0, 2)
            start = min(ask.start, size)
            end = min(start + min(ask.span_bytes, SPAN_BYTES_MAX), size)
            file.seek(start)
            if start == end:  # nothing to tell but how large it is
                yield content.encode(ask.path, start, size, b"")
            while start < end and (data := file.read(min(piece_bytes, end - start))):
                yield content.encode(ask.path, start, size, data)
                start += len(data)
