"""Kills a rotation before each thing that it does to its files, starts anew, and says what became
of it: one line of JSON for each (`python -m tests.identity.killed FOLDER up|down`).

It forks from a process without threads, which is faster than a start of Python for each.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.commands.verbs.identity import Install
from agent.errors import HoldfastError
from tests.identity.desk import Desk, Noted

ACTS = ("open", "os.rename", "os.remove")


def killed_at(place: Path, number: int) -> None:
    """Die before the act of that number on a file below `place`."""
    done = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        if event in ACTS and str(args[0]).startswith(str(place)):
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


async def begin(desk: Desk, args: Install) -> None:
    """The command, as it is begun."""
    await told(desk, desk.verbs["certificate.install"].run(args, Noted(desk.folder / "step")))


async def go_on(desk: Desk, args: Install) -> None:
    """The agent's next start: the trial goes on, and so does the command."""
    resume = desk.verbs["certificate.install"].resume
    assert resume
    trial = asyncio.create_task(desk.rotation.run())
    await told(desk, resume(args, Noted(desk.folder / "step")))
    trial.cancel()


async def told(desk: Desk, work: Coroutine[Any, Any, Any] | Any) -> None:
    """Do it; its result is what others are told."""
    try:
        await work
        result = "succeeded"
    except HoldfastError as error:
        result = f"{type(error).__name__}: {error}"
    (desk.folder / "result").write_text(result)


def forked(work: Callable[[], None]) -> bool:
    """In a process of its own; whether it lived."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def one(template: Path, place: Path, number: int, args: Install, *, is_up: bool) -> bool:
    """Whether it was over before that many acts."""
    shutil.copytree(template, place)

    def first() -> None:
        killed_at(place, number)
        asyncio.run(begin(Desk(place, is_up=is_up), args))

    lived = forked(first)
    if not lived:
        assert forked(lambda: asyncio.run(go_on(Desk(place, is_up=is_up), args)))
    return lived


def main(folder: Path, *, is_up: bool) -> None:
    """All of them, until one is over before it is killed."""
    template = folder / "template"
    template.mkdir()
    desk = Desk(template)
    desk.enrol()
    args = desk.renewed()
    former = desk.path.read_bytes()
    for number in range(1, 200):
        place = folder / str(number)
        lived = one(template, place, number, args, is_up=is_up)
        content = (place / "device.pem").read_bytes()
        found = {
            "killed_at": 0 if lived else number,
            "result": (place / "result").read_text(),
            "pair": "former" if content == former else "new",
            "whole": content == former or content.endswith(args.certificate.encode()),
            "left": sorted(path.name for path in place.glob("device.pem.*")),
        }
        print(json.dumps(found))
        if lived:
            return
        shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_up=sys.argv[2] == "up")
