"""The messages that wait for the database, opened while it is busy with those before them.

Limits  : OPEN_BYTES_MAX of opened ones, and one message more; the others wait as they came. How
          many those are, the broker bounds for QoS 1; with QoS 0 nobody does, so what comes with it
          while WAITING_MAX messages or CLOSED_BYTES_MAX of unopened ones wait (`full`) should not
          be added. A transaction takes the opened ones, and no more.
Recovery: they are not PUBACKed yet, so all of them come again.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

from fleet.mqtt.connection import Message

OPEN_BYTES_MAX = 32 << 20
CLOSED_BYTES_MAX = 32 << 20
WAITING_MAX = 1000
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
        self._closed_bytes = 0
        self._opened: list[Opened[What]] = []
        self._opened_bytes = 0

    def __len__(self) -> int:
        return len(self._closed) + len(self._opened)

    @property
    def full(self) -> bool:
        """Whether only those should be added that their sender keeps until they are taken."""
        return len(self) >= WAITING_MAX or self._closed_bytes >= CLOSED_BYTES_MAX

    def add(self, message: Message) -> None:
        """One more came."""
        self._closed.append(message)
        self._closed_bytes += len(message.payload)
        self._open()

    def taken(self) -> list[Opened[What]]:
        """The oldest, as many as there is room for; they wait no more."""
        self._open()
        taken, self._opened, self._opened_bytes = self._opened, [], 0
        return taken

    def _open(self) -> None:
        while self._closed and self._opened_bytes < OPEN_BYTES_MAX:
            message = self._closed.popleft()
            self._closed_bytes -= len(message.payload)
            one = Opened(message, *self._look_into(message))
            self._opened.append(one)
            self._opened_bytes += one.size_bytes
