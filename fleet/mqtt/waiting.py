"""The messages that wait for the database, opened while it is busy with those before them.

Limits  : OPEN_BYTES_MAX of opened ones, and one message more; the others wait as they came, and the
          broker bounds how many those are. A transaction takes the opened ones, and no more.
Recovery: they are not PUBACKed yet, so all of them come again.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

from fleet.mqtt.connection import Message

OPEN_BYTES_MAX = 32 << 20
What = TypeVar("What")


class Opened(Struct, Generic[What], frozen=True):
    """A message, what is in it, and about how many bytes of memory that is."""

    message: Message
    what: What
    size_bytes: int


class Waiting(Generic[What]):
    """In the order they came."""

    def __init__(self, opened: Callable[[Message], tuple[What, int]]) -> None:
        """`opened` says what is in a message, and how many bytes of memory that takes."""
        self._look_into = opened
        self._closed: deque[Message] = deque()
        self._opened: list[Opened[What]] = []
        self._opened_bytes = 0

    def __len__(self) -> int:
        return len(self._closed) + len(self._opened)

    def add(self, message: Message) -> None:
        """One more came."""
        self._closed.append(message)
        self._open()

    def taken(self) -> list[Opened[What]]:
        """The oldest, as many as there is room for; they wait no more."""
        self._open()
        taken, self._opened, self._opened_bytes = self._opened, [], 0
        return taken

    def _open(self) -> None:
        while self._closed and self._opened_bytes < OPEN_BYTES_MAX:
            message = self._closed.popleft()
            one = Opened(message, *self._look_into(message))
            self._opened.append(one)
            self._opened_bytes += one.size_bytes
