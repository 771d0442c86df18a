"""Whether a connection that aiohttp serves may go back to the express lane.

A client often asks first what a model is, and then asks the model thousands of times. It may go
back between two requests, if nothing of another one lies in aiohttp already. That is sure only as
long as each piece that came was one whole request; a connection for which that once did not hold
stays where it is.
"""

import re
from typing import Protocol, cast

END = b"\r\n\r\n"
HEAD_BYTES_MAX = 4096
LANE = b"POST /v2/models/"
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n")
# Headers by which a request ends elsewhere, or that make another of the connection.
OTHER = (b"\ncontent-length", b"\ntransfer-encoding", b"\nupgrade", b"\nexpect")


class Serving(Protocol):
    """aiohttp's side; http.py."""

    @property
    def idle(self) -> bool:
        """Whether its last answer is out, and it waits for a request."""


class Turns:
    """Of one connection."""

    def __init__(self) -> None:
        self._clean = True  # each piece so far was one whole request

    def fed(self, piece: bytes) -> None:
        """This went to aiohttp."""
        self._clean = self._clean and whole(piece)

    def back(self, serving: object, piece: bytes) -> bool:
        """Whether this piece, which has come next, may be the lane's."""
        return self._clean and piece.startswith(LANE) and cast(Serving, serving).idle


def whole(piece: bytes) -> bool:
    """Whether it is one request, from its first byte to its last; not, where that is not plain."""
    end = piece.find(END) + len(END)
    if not len(END) <= end <= HEAD_BYTES_MAX:
        return False
    head = piece[:end].lower()
    length = LENGTH.search(head)
    if length:
        head = head.replace(length[0], b"\r\n", 1)
    if any(word in head for word in OTHER):
        return False
    return len(piece) - end == (int(length[1]) if length else 0)
