"""A real PostgreSQL in a folder of its own."""

import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.outside import free_port, program, until

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
NAMES = itertools.count(1)


class Cluster:
    """Started in a folder below /tmp: as root, PostgreSQL has to be somebody else."""

    def __init__(self) -> None:
        self._bin = FOUND[0] if FOUND else Path(program("initdb", "postgresql")).parent
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", "postgres", "-N")

    def start(self, *, fsync: bool = False) -> None:
        """Start it and wait until it answers.

        In a test, what is committed must survive the kill of a process, not a power cut.
        """
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self._as("postgres"), "-D", str(self.folder / "data")),
                    *("-p", str(self.port), "-k", str(self.folder)),
                    *(
                        "-c",
                        "listen_addresses=127.0.0.1",
                        "-c",
                        f"fsync={'on' if fsync else 'off'}",
                    ),
                ],
                cwd="/",
                stdout=log,
                stderr=log,
            )
        until(self._answers, "PostgreSQL answers")

    @property
    def pid(self) -> int:
        """The process id of its first process, once it was started."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9 of all of it."""
        if self._process:
            self._run("pg_ctl", "-D", str(self.folder / "data"), "stop", "-m", "immediate")
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Stop it, and nothing is left."""
        self.kill()
        shutil.rmtree(self.folder)

    def new(self) -> str:
        """The URL of a new, empty database."""
        name = f"test{next(NAMES)}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (
            self.folder / "log"
        ).read_text()
        asked = [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        return subprocess.run(asked, check=False).returncode == 0

    def _as(self, name: str) -> list[str]:
        command = [str(self._bin / name)]
        return (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
            if (os.geteuid() == 0)
            else command
        )

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as(name), *arguments], capture_output=True, text=True, cwd="/", check=False
        )
        assert done.returncode == 0, done.stderr
