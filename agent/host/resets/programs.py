"""Programs as reset hooks: the executables of a folder, and one command of the configuration.

A file that others may write is theirs, not ours: it is not run, and that is said.
"""

import asyncio
import os
import re
import signal
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from agent.errors import HoldfastError

# As run-parts has it, so that what an editor or a package leaves behind is no hook; with .sh, .py.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(\.(sh|py))?")
HOOKS_MAX = 8
_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Program:
    """Run with `reset` as its last word where it is of the folder; with its words else."""

    def __init__(self, name: str, argv: Sequence[str], *, folder: Path | None = None) -> None:
        """`folder`: it is one of this folder, which must be as safe as the program itself."""
        self.name = name
        self._argv = argv
        self._folder = folder

    async def look(self) -> str:
        """What would be done. Raises HoldfastError where it could not."""
        self._check()
        return f"would run {self._argv[0]}"  # not its words: one may be a password

    async def pull(self, why: str) -> None:
        """Run it to its end; cancelled, it is ended with all it began. Raises HoldfastError."""
        self._check()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                env={"PATH": _PATH, "HOLDFAST_WHY": why},
                start_new_session=True,
            )
        except OSError as error:
            raise HoldfastError(f"{self._argv[0]}: {error.strerror}", "make it run") from error
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if status:
            raise HoldfastError(f"{self._argv[0]} ended with status {status}", "see the journal")

    def _check(self) -> None:
        """Raises HoldfastError."""
        path = Path(self._argv[0])
        try:
            if self._folder:
                _check_rights(self._folder, self._folder.lstat(), stat.S_ISDIR, "a folder")
            found = path.lstat() if self._folder else path.stat()  # of ours, no link elsewhere
        except OSError as error:
            raise HoldfastError(
                f"{path}: {error.strerror}", "put it there; a program is named by its whole path"
            ) from error
        _check_rights(path, found, stat.S_ISREG, "a file")
        if not os.access(path, os.X_OK):
            raise HoldfastError(f"{path} cannot be run", f"chmod 755 {path}")
        if self._folder and not _NAME.fullmatch(path.name):
            raise HoldfastError(
                f"{path}: its name is none of a hook",
                "letters, digits, - and _, at most .sh or .py behind them",
            )


def programs_in(folder: Path) -> list[Program]:
    """The hooks of a folder, by name; none where it is not there. Raises HoldfastError."""
    try:
        names = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HoldfastError(f"{folder}: {error.strerror}", "chmod 755 it") from error
    if len(names) > HOOKS_MAX:
        raise HoldfastError(f"{folder} holds more than {HOOKS_MAX} files", "leave those it needs")
    paths = [str(folder / name) for name in names]
    return [Program(path, (path, "reset"), folder=folder) for path in paths]


def _check_rights(
    path: Path, found: os.stat_result, is_kind: Callable[[int], bool], word: str
) -> None:
    """Raises HoldfastError unless it is ours, or root's, to write, and nobody else's."""
    if not is_kind(found.st_mode):
        raise HoldfastError(f"{path} is not {word}", f"put {word} there")
    if found.st_uid not in (0, os.geteuid()):
        raise HoldfastError(f"{path} belongs to uid {found.st_uid}", f"chown root {path}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HoldfastError(f"{path} can be written by others", f"chmod go-w {path}")
