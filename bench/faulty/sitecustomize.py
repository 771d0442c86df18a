"""Read by Python at its start when its folder is on PYTHONPATH: an agent that can be broken.

At SIGUSR2 the agent's main thread, the one of the loop, does what the file says that the
environment's HOLDFAST_FAULT names. Nothing of the agent is changed, and nothing of it is called.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

MIB = 1 << 20
STEP_BYTES = 128 * MIB
LEAK_BYTES_MAX = 1280 * MIB  # whoever watches this is to be spared
kept: list[bytearray] = []


def call_c() -> None:
    """A call that does not come back, and holds the interpreter's lock."""
    ctypes.PyDLL(None).sleep(3600)


def turn() -> None:
    """Python that goes round and round."""
    while True:
        pass


def take() -> None:
    """Memory that is never given back, quicker than any cache grows."""

    def grow() -> None:
        while sum(map(len, kept)) < LEAK_BYTES_MAX:
            kept.append(bytearray(os.urandom(MIB) * (STEP_BYTES // MIB)))
            time.sleep(0.1)

    threading.Thread(target=grow, daemon=True).start()


FAULTS = {"call_c": call_c, "turn": turn, "take": take}

if "agent.cli.run" in sys.orig_argv:
    signal.signal(
        signal.SIGUSR2, lambda *_: FAULTS[Path(os.environ["HOLDFAST_FAULT"]).read_text()]()
    )
