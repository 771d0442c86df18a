"""What msgspec knows of each Struct, made before there are threads.

It is made when the first document of a kind is read, and other threads find it before it is whole:
two that read the first one at the same time end the process (SIGSEGV; msgspec 0.22). Two domains
that began at once did that to 9 of 625 starts of an agent on a busy machine. Here all of it is made
at once, in 25 ms of a processor and 0.2 MiB. What is loaded later, one thread alone must read.
"""

from contextlib import suppress

import msgspec


def make_all() -> None:
    """Of each Struct that is loaded."""
    waiting = msgspec.Struct.__subclasses__()
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        with suppress(TypeError):  # one that is only written may hold what cannot be read
            msgspec.json.Decoder(one)
