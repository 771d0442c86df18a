"""Log lines: for people on a terminal, for journald (which stamps them itself) elsewhere."""

import logging
import sys
import time

COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
PARTS = {"heard": "\033[32m", "link": "\033[36m"}
PLAIN = "\033[0m"


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
            line += " | " + self.formatException(record.exc_info).replace("\n", " | ")
        return line


def printable(text: str) -> str:
    """Text from outside as text that can be stored, sent and printed on one line."""
    text = text.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def begin(level: str) -> None:
    """Send all logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Terminal() if sys.stderr.isatty() else Journal())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
