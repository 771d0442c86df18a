"""`holdfast run`: the one command that is the agent (`python -P -m agent.cli.run CONFIG`)."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the agent takes signals, Ctrl-C just ends it
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, no child can be waited for

import os
import sys
from pathlib import Path

from agent import app, config_file, logs
from agent.errors import HoldfastError


def main(path: str) -> int:
    """Run the agent on this configuration until a signal ends it; the exit code."""
    os.umask(0o027)  # what people said is not for every user of the machine to read
    try:
        settings = config_file.load(Path(path))
        logs.begin(settings.log_level)
        return app.run(settings, Path(path))
    except HoldfastError as error:
        logs.end()  # what was logged before comes before
        return error.told()
    finally:
        logs.end()


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
    code = main(*sys.argv[1:])
    if code == app.ANEW and "NOTIFY_SOCKET" not in os.environ:  # nobody else starts it again
        os.execv(sys.executable, [sys.executable, "-P", "-m", "agent.cli.run", *sys.argv[1:]])
    # All is closed by now. Threads that were left behind in a call (agent/threads.py) would meet an
    # interpreter that takes itself apart, and sometimes end it with SIGSEGV.
    os._exit(code)
