"""A controller in a process of its own, its tables, and waiting for what it does."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from typer.testing import CliRunner

from agent.errors import HoldfastError
from fleet import cli
from fleet.control import base
from fleet.store.database import Transaction
from tests.fleet.process import FLEET, IngestProcess
from tests.outside import DEADLINE_S

T = TypeVar("T")


class ControlProcess(IngestProcess):
    """`holdfast-fleet control`; its log is a file."""

    def __init__(self, folder: Path, broker_url: str, database_url: str, *options: str) -> None:
        super().__init__(folder, broker_url, database_url)
        self.command = [
            *(str(FLEET), "control", "--broker", broker_url, "--database", database_url),
            *("--metrics-port", str(self.metrics_port), "--poll-s", "0.05", *options),
        ]


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


async def fleet(*arguments: str) -> Done:
    """The command, in a thread of this process: to start one takes a second."""
    return await asyncio.to_thread(_fleet, arguments)


def _fleet(arguments: tuple[str, ...]) -> Done:
    found = CliRunner().invoke(cli.app, arguments, catch_exceptions=True)
    if isinstance(found.exception, HoldfastError):  # as cli.main does it
        error = found.exception
        return Done(error.exit_code, found.stdout, f"{error}\n{error.hint}")
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Done(found.exit_code, found.stdout, found.stderr)


async def document(*arguments: str) -> Any:
    """What the command prints with --json, whatever its exit code."""
    done = await fleet(*arguments, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


async def asked(url: str, question: Callable[[Transaction], Awaitable[T]]) -> T:
    """What a transaction on the controller's tables answers."""
    async with base.open(url) as database, database.begin() as transaction:
        return await question(transaction)


async def happens(
    question: Callable[[], Awaitable[T]], what: str, deadline_s: float = DEADLINE_S
) -> T:
    """Ask until the answer is true; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if answer := await question():
            return answer
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {deadline_s} s: {what}")
