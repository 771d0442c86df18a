"""Log lines: for people on a terminal, for journald (which stamps them itself) elsewhere.

A thread writes them, so that a reader that stalls holds up nobody. LINES_MAX may wait for it; what
comes then is dropped, and their number is the first line after. A line that is written while a
request is answered names it, whoever writes it.

The last lines stay in memory for the doors: KEPT_LINES_MAX of them, of KEPT_BYTES_MAX in all, each
cut at KEPT_CHARS_MAX. Nothing is written to a file here; where there is one, it is the journal's.
"""

import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from logging.handlers import QueueHandler

from msgspec import Struct

from agent.changes import Changes
from agent.words import quoted

COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
PARTS = {"heard": "\033[32m", "link": "\033[36m"}
PLAIN = "\033[0m"
LINES_MAX = 1000
KEPT_LINES_MAX = 2000
KEPT_BYTES_MAX = 512 << 10
KEPT_CHARS_MAX = 2000
LINE_BYTES = 200  # what keeping one takes beside its text
FLUSH_S = 1.0  # how long the end waits for the last lines to be written


class Mark:
    """The request that is being answered; no id: it was, and what it began goes on."""

    __slots__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id


_REQUEST: ContextVar[Mark | None] = ContextVar("request", default=None)


class naming:  # noqa: N801  it is used as a function
    """In `with`: what is logged there, and by the tasks that begin there, names this request."""

    __slots__ = ("_mark", "_token")

    def __init__(self, request_id: str) -> None:
        self._mark = Mark(request_id)

    def __enter__(self) -> None:
        self._token = _REQUEST.set(self._mark)

    def __exit__(self, *_: object) -> None:
        self._mark.id = ""
        _REQUEST.reset(self._token)


def _about() -> str:
    mark = _REQUEST.get()
    return f" [request {mark.id}]" if mark and mark.id else ""


class Terminal(logging.Formatter):
    """Clock time, part, message; coloured."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        colour = COLOURS.get(record.levelno) or PARTS.get(record.name, "")
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {colour}{record.name:<9}{PLAIN} {record.getMessage()}{_about()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Journal(logging.Formatter):
    """Level as journald's prefix, part, message; one line."""

    LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        """One line, with the traceback's lines joined."""
        level = next((n for at, n in self.LEVELS if record.levelno >= at), 7)
        line = f"<{level}>{record.name}: {record.getMessage()}{_about()}"
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


class LogLine(Struct, frozen=True):
    """A line of the log; its number says where it stands in this run of the agent."""

    number: int
    at_us: int
    level: str
    source: str
    text: str


class Lines(Struct, frozen=True):
    """Lines, the oldest first; the number of the last there is; how many are not kept any more."""

    lines: list[LogLine]
    last: int
    missed: int


class Recent(logging.Handler):
    """The last lines. `changes` tells of each that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = Changes()
        self.last = 0  # the number of the last line that came
        self._kept: deque[LogLine] = deque()
        self._kept_bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; under the handler's own lock."""
        text = record.getMessage()
        if record.exc_info:
            text += f"\n{_TRACES.formatException(record.exc_info)}"
        text = quoted(text.replace("\n", " | "), KEPT_CHARS_MAX)
        self.last += 1
        at_us, level = int(record.created * 1e6), record.levelname.lower()
        self._kept.append(LogLine(self.last, at_us, level, record.name, text))
        self._kept_bytes += _size_bytes(self._kept[-1])
        while len(self._kept) > KEPT_LINES_MAX or self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= _size_bytes(self._kept.popleft())
        self.changes.tell()

    def lines(self, after: int, level: str) -> Lines:
        """Those of at least this level after number `after`.

        A number that has not come yet is of another run of the agent: after it come all lines.
        """
        self.acquire()
        try:
            kept, last = list(self._kept), self.last
        finally:
            self.release()
        after = after if after <= last else 0
        least = logging.getLevelName(level.upper())
        first = kept[0].number if kept else last + 1
        found = [
            one
            for one in kept
            if one.number > after and logging.getLevelName(one.level.upper()) >= least
        ]
        return Lines(found, last, max(0, first - after - 1))


def _size_bytes(line: LogLine) -> int:
    return LINE_BYTES + len(line.text.encode())


def _write(lines: "queue.Queue[logging.LogRecord]") -> None:
    """Write line after line, for ever. No lock of Python's is held meanwhile: at the end nobody
    would get it from a write that stalls."""
    while True:
        line = lines.get().getMessage() + "\n"
        with suppress(OSError):  # nobody is there to be told
            os.write(2, line.encode(errors="replace"))
        lines.task_done()


RECENT = Recent()
_TRACES = logging.Formatter()
_LINES: "queue.Queue[logging.LogRecord]" = queue.Queue(LINES_MAX)


def begin(level: str) -> None:
    """Send all logs to standard error."""
    handler = Patient(_LINES)
    handler.setFormatter(Terminal() if sys.stderr.isatty() else Journal())
    threading.Thread(target=_write, args=(_LINES,), name="log", daemon=True).start()
    logging.basicConfig(level=level.upper(), handlers=[handler, RECENT], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Lines of this level and above, from now on."""
    logging.getLogger().setLevel(level.upper())


def end() -> None:
    """Wait a little until the last lines are written."""
    with _LINES.all_tasks_done:
        _LINES.all_tasks_done.wait_for(lambda: not _LINES.unfinished_tasks, FLUSH_S)
