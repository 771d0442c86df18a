"""The memory that the bodies of all requests may take together, while they come and are worked on.

The doors bound connections, and each body; the product of both would be 9 GB.

Limits: ROOM_BYTES. A body of at most SMALL_BYTES is not counted: the doors' places bound those, to
40 MB as shipped, and they pass however many large ones there are.
"""

from agent.errors import BusyError

ROOM_BYTES = 256 << 20  # four bodies of the largest size: a small board has 4 GB for everything
SMALL_BYTES = 256 << 10  # about what a connection's read may bring at once anyway
RETRY_S = 1.0


class Room:
    """What is free of it."""

    def __init__(self, size_bytes: int = ROOM_BYTES) -> None:
        self.size_bytes = size_bytes
        self.free_bytes = size_bytes


class Share:
    """What one request, or one connection with one at a time, has of the room; to be left again."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.held_bytes = 0

    def take(self, body_bytes: int) -> bool:
        """Have room for a body of this size in all; whether there is. If not, nothing changes."""
        more = body_bytes - self.held_bytes
        if body_bytes <= SMALL_BYTES or more <= 0:
            return True
        if more > self._room.free_bytes:
            return False
        self._room.free_bytes -= more
        self.held_bytes = body_bytes
        return True

    def insist(self, body_bytes: int) -> None:
        """As `take`. Raises BusyError where there is no room."""
        if not self.take(body_bytes):
            raise BusyError(
                f"no room for a body of {body_bytes} bytes: those of other requests take "
                f"{self._room.size_bytes - self._room.free_bytes} of {self._room.size_bytes}",
                "try again soon, or send less at once",
                RETRY_S,
            )

    def leave(self) -> None:
        """Give all of it back."""
        self._room.free_bytes += self.held_bytes
        self.held_bytes = 0
