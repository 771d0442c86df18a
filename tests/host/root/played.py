"""`holdfast-root` as a process of its own, with ways that do no harm (harmless.py)."""

import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.outside import ROOT, until

HARMLESS = "tests.host.root.harmless"
# Tells with which words it was called, and does what it finds in a file beside it.
PROGRAM = """#!/bin/sh
echo "$0 $*" >> {folder}/called
if [ -e {folder}/do ]; then . {folder}/do; fi
"""


def prepare(folder: Path) -> None:
    """What the ways name."""
    (folder / "sysrq").touch()
    program = folder / "program"
    program.write_text(PROGRAM.format(folder=folder))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


class Played:
    """The daemon as a process of its own; `socket` is where it listens."""

    def __init__(self, folder: Path, user: str = "nobody") -> None:
        prepare(folder)
        self.folder = folder
        self.socket = folder / "root.sock"
        self.log = folder / "root.log"
        self.command = [sys.executable, "-P", "-m", HARMLESS, str(folder)]
        self.command += ["--user", user, "--socket", str(self.socket)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stderr=log, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT
            )
        until(lambda: "ready" in self.log.read_text(), "it listens")

    def open_files(self) -> int:
        """How many descriptors it has."""
        assert self._process
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def called(self) -> list[str]:
        """How its program was called."""
        with suppress(FileNotFoundError):
            return [
                one.partition(" ")[2] for one in (self.folder / "called").read_text().splitlines()
            ]
        return []

    def pressed(self) -> str:
        """What was written to sysrq."""
        return (self.folder / "sysrq").read_text()
