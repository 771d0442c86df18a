"""The producer as a test sees it: started, listened to, killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.outside import ROOT, until

LONG = os.environ.get("HOLDFAST_LONG") == "1"
SEED = int(os.environ.get("HOLDFAST_SEED", "1"))


class Producer:
    """producer.py on a folder. Leaving its context kills it."""

    def __init__(self, folder: Path, log: Path, seed: str, *options: str) -> None:
        self._log = log
        self._command = [
            *(sys.executable, "-m", "tests.store.faults.producer", str(folder), seed, *options)
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """kill -9, if it lives."""
        self._process.kill()
        self._process.wait()

    def lines(self) -> list[str]:
        """What it said so far, whole lines only."""
        text = self._log.read_text(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()

    def dead(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def heard(self, count: int, word: str = "") -> None:
        """Wait for so many more lines that begin with `word`; it must not end before that."""
        before = self._count(word)
        until(lambda: self.dead() or self._count(word) >= before + count, f"{count} more {word}")
        assert not self.dead(), "\n".join(self.lines()[-20:])

    def killed_itself(self) -> None:
        """Wait for the end it was told to make."""
        until(self.dead, "the producer meets its point")
        assert self._process.returncode == -signal.SIGKILL, "\n".join(self.lines()[-20:])

    def _count(self, word: str) -> int:
        return sum(line.startswith(word) for line in self.lines())
