"""`holdfast run`: the one command that is the agent (`python -P -m agent.cli.run CONFIG`)."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the agent takes signals, Ctrl-C just ends it
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no child can be waited for

import faulthandler
import gc

gc.disable()  # what is loaded stays: nothing to look for until all of it is there

import os
import sys
from pathlib import Path
from typing import NoReturn

from agent.cli.without_authorities import aiohttp_is_loaded

aiohttp_is_loaded()

from agent import app, logs, structs
from agent.errors import HoldfastError

structs.make_all()
gc.collect()
gc.freeze()  # nor does any later round, which holds up the loop, go through it again
gc.enable()


def main(path: str) -> int:
    """Run the agent on this configuration until a signal ends it; the exit code."""
    os.umask(0o027)  # what people said is not for every user of the machine to read
    logs.begin("info")
    try:
        code = app.run(Path(path))
    except HoldfastError as error:
        logs.end()  # what was logged before comes before
        code = error.told()
        if isinstance(error, app.Anew):
            code = app.ANEW
    finally:
        logs.end()
    return _anew(path) if code == app.ANEW else code


def _anew(path: str) -> int:
    """Begin anew, for another version of the configuration; under systemd, which does it, the
    status with which it does."""
    if "NOTIFY_SOCKET" not in os.environ:
        _begin_again(path)
    return app.AGAIN


def _begin_again(path: str) -> NoReturn:
    """As a new program in this process."""
    # As in command.py: Ctrl-C waits until the new program has begun.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.execv(sys.executable, [sys.executable, "-P", "-m", "agent.cli.run", path])


def open_standard_files() -> None:
    """Descriptors 0 to 2, if somebody closed them: else the next file opened becomes one."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd < 2:
        fd = os.dup(fd)
    if fd > 2:
        os.close(fd)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


if __name__ == "__main__":
    open_standard_files()
    faulthandler.enable()  # a library that crashes says where
    code = main(*sys.argv[1:])
    # All is closed by now. Threads that were left behind in a call (agent/threads.py) would meet an
    # interpreter that takes itself apart, and sometimes end it with SIGSEGV.
    os._exit(code)
