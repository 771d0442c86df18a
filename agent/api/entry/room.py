"""What bodies may take together while they come and are worked on: memory, and places.

The doors bound connections, and each body; the product of both would be 9 GB. No caller may have
all of it, or who is slow would keep the others out.

Limits: ROOM_BYTES of memory. A body of at most SMALL_BYTES is not counted: the doors' places bound
those, to 40 MB as shipped, and they pass however many large ones there are. Of memory and of places
a quarter is for others than the one who has the most.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import BusyError

ROOM_BYTES = 256 << 20  # four bodies of the largest size: a small board has 4 GB for everything
SMALL_BYTES = 256 << 10  # about what a connection's read may bring at once anyway
OTHERS = 4  # one in so many is for others
RETRY_S = 1.0


class Room:
    """What is free of the memory, and who has the rest."""

    def __init__(self, size_bytes: int = ROOM_BYTES, caller_bytes_max: int | None = None) -> None:
        self.size_bytes = size_bytes
        self.free_bytes = size_bytes
        self.caller_bytes_max = caller_bytes_max or size_bytes - size_bytes // OTHERS
        self.taken_bytes: Counter[str] = Counter()  # by caller


class Share:
    """What one request, or one connection with one at a time, has of the room; to be left again."""

    def __init__(self, room: Room, caller: str = "") -> None:
        self._room = room
        self.caller = caller  # whose it is; it may be another's while it is empty
        self.held_bytes = 0

    def take(self, body_bytes: int) -> bool:
        """Have room for a body of this size in all; whether there is. If not, nothing changes."""
        more = body_bytes - self.held_bytes
        if body_bytes <= SMALL_BYTES or more <= 0:
            return True
        room = self._room
        if more > room.free_bytes or room.taken_bytes[self.caller] + more > room.caller_bytes_max:
            return False
        room.free_bytes -= more
        room.taken_bytes[self.caller] += more
        self.held_bytes = body_bytes
        return True

    def insist(self, body_bytes: int) -> None:
        """As `take`. Raises BusyError where there is no room."""
        if not self.take(body_bytes):
            room = self._room
            raise BusyError(
                f"no room for a body of {body_bytes} bytes: those of other requests take "
                f"{room.size_bytes - room.free_bytes} of {room.size_bytes}, and yours "
                f"{room.taken_bytes[self.caller]} of {room.caller_bytes_max}",
                "try again soon, or send less at once",
                RETRY_S,
            )

    def leave(self) -> None:
        """Give all of it back."""
        self._room.free_bytes += self.held_bytes
        self._room.taken_bytes[self.caller] -= self.held_bytes
        if not self._room.taken_bytes[self.caller]:
            del self._room.taken_bytes[self.caller]
        self.held_bytes = 0


class Places:
    """For bodies that are long in coming, a few at once."""

    def __init__(self, most: int, what: str) -> None:
        """`what` they are called, where there are several."""
        self._most = most
        self._caller_most = max(1, most - max(1, most // OTHERS))
        self._what = what
        self._taken: Counter[str] = Counter()  # by caller

    @property
    def taken(self) -> int:
        """How many come in now."""
        return self._taken.total()

    @contextmanager
    def place(self, caller: str, retry_s: float) -> Iterator[None]:
        """One of them, for as long as it is needed. Raises BusyError where there is none."""
        if self.taken >= self._most:
            raise BusyError(f"{self.taken} {self._what} come in", "try again soon", retry_s)
        if self._taken[caller] >= self._caller_most:
            raise BusyError(
                f"{self._taken[caller]} {self._what} of yours come in, and the last place is for "
                "others",
                "send fewer at once, or try again soon",
                retry_s,
            )
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]
