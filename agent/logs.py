"""Log lines: for people on a terminal, for journald (which stamps them itself) elsewhere.

A thread writes them, so that a reader that stalls holds up nobody. LINES_MAX may wait for it; what
comes then is dropped, and their number is the first line after.
"""

import logging
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from logging.handlers import QueueHandler

COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
PARTS = {"heard": "\033[32m", "link": "\033[36m"}
PLAIN = "\033[0m"
LINES_MAX = 1000
QUOTED_CHARS_MAX = 200
FLUSH_S = 1.0  # how long the end waits for the last lines to be written


class Terminal(logging.Formatter):
    """Clock time, part, message; coloured."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        colour = COLOURS.get(record.levelno) or PARTS.get(record.name, "")
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {colour}{record.name:<9}{PLAIN} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Journal(logging.Formatter):
    """Level as journald's prefix, part, message; one line."""

    LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        """One line, with the traceback's lines joined."""
        level = next((n for at, n in self.LEVELS if record.levelno >= at), 7)
        line = f"<{level}>{record.name}: {record.getMessage()}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line.replace("\n", " | ")


class Patient(QueueHandler):
    """Gives lines to the thread that writes them, and never waits for it."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord]") -> None:
        super().__init__(lines)
        self._lines = lines
        self._lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as lost."""
        try:
            if self._lost:
                word = f"{self._lost} lines of the log were lost: nobody read them"
                told = logging.LogRecord("log", logging.WARNING, "", 0, word, None, None)
                self._lines.put_nowait(self.prepare(told))
                self._lost = 0
            self._lines.put_nowait(record)
        except queue.Full:
            self._lost += 1


def _write(lines: "queue.Queue[logging.LogRecord]") -> None:
    """Write line after line, for ever. No lock of Python's is held meanwhile: at the end nobody
    would get it from a write that stalls."""
    while True:
        line = lines.get().getMessage() + "\n"
        with suppress(OSError):  # nobody is there to be told
            os.write(2, line.encode(errors="replace"))
        lines.task_done()


def printable(text: str) -> str:
    """Text from outside as text that can be stored, sent and printed on one line."""
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def quoted(text: str, chars_max: int = QUOTED_CHARS_MAX) -> str:
    """As `printable`, and no longer than that: what the other side says may be of any length."""
    said = printable(text[: chars_max + 1])
    return said if len(said) <= chars_max else f"{said[: chars_max - 3]}..."


_LINES: "queue.Queue[logging.LogRecord]" = queue.Queue(LINES_MAX)


def begin(level: str) -> None:
    """Send all logs to standard error."""
    handler = Patient(_LINES)
    handler.setFormatter(Terminal() if sys.stderr.isatty() else Journal())
    threading.Thread(target=_write, args=(_LINES,), name="log", daemon=True).start()
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def end() -> None:
    """Wait a little until the last lines are written."""
    with _LINES.all_tasks_done:
        _LINES.all_tasks_done.wait_for(lambda: not _LINES.unfinished_tasks, FLUSH_S)
