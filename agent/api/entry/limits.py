"""What the doors allow a connection."""

from typing import NamedTuple

from agent.api.entry.pace import PAUSE_S


class Limits(NamedTuple):
    """What the doors allow; seconds count until a whole request header is there."""

    tcp_places: int = 128  # the server has those of the settings; a descriptor each
    socket_places: int = 16  # its own, so that the command gets in however full the other door is
    first_request_s: float = 10.0  # from this machine a request takes milliseconds
    next_request_s: float = 15.0  # from the last answer on, which has to be taken within it too
    body_s: float = 60.0  # from the header of a request to the end of its body
    pause_s: float = PAUSE_S  # of a body that has not kept its pace; pace.py
    handshake_s: float = 10.0  # a slow network needs four round trips, a small board 50 ms
    taking_s: float = 60.0  # of a long answer, what fills the buffers: some 64 KiB


LIMITS = Limits()
