"""The child process of a domain: one engine, one socket, one call after the other.

Started by `domain.py` as `python -m agent.inference.worker FD ENGINE OPTIONS`; it ends when the
agent ends, in whatever way that happens.
"""

import socket
import sys
import time
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np

from agent import child
from agent.errors import HoldfastError
from agent.inference import wire


def _speech(options: dict[str, Any], sock: socket.socket) -> None:
    """Serve the speech engine until the agent closes the socket."""
    from agent.inference.engines.speech import FULL_SCALE, Engine

    begun = time.monotonic()
    engine = Engine(**options)
    wire.send(sock, wire.Hello(engine.ep, time.monotonic() - begun, engine.memory_size))
    decoder = msgspec.msgpack.Decoder(wire.Listen)
    while True:
        head, body = wire.receive(sock)
        parts = decoder.decode(head).parts
        pcm = np.frombuffer(body, np.int16, sum(part.samples for part in parts))
        memories = np.frombuffer(body, np.float32, offset=pcm.nbytes)
        heard, speech, memories = engine.listen(parts, pcm, memories.reshape(len(parts), -1))
        clean = [np.clip(np.rint(c * FULL_SCALE), -32768, 32767).astype(np.int16) for c in heard]
        sizes = [(len(c), len(s)) for c, s in zip(clean, speech, strict=True)]
        answer = [array.tobytes() for array in (*clean, *speech, memories)]
        wire.send(sock, wire.Heard(sizes), *answer)


ENGINES = {"speech": _speech}


def main(fd: str, parent: str, engine: str, options: str) -> None:
    """Run one engine on the socket `fd`; `options` are its constructor's arguments as JSON."""
    child.live_with(int(parent))
    # A lost connection: the agent is gone, or has closed the domain.
    with socket.socket(fileno=int(fd)) as sock, suppress(ConnectionError):
        try:
            ENGINES[engine](msgspec.json.decode(options), sock)
        except HoldfastError as error:
            wire.send(sock, wire.Failure(str(error)))
        except ConnectionError:
            raise
        except Exception as error:  # whatever it is, the agent is to name it before we end of it
            wire.send(sock, wire.Failure(f"the worker ended: {error!r}"))
            raise  # its traceback goes to standard error


if __name__ == "__main__":
    main(*sys.argv[1:])
