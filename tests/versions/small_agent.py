"""An agent that is its configuration's versions alone, in a process of its own, to be killed.

    python -m tests.versions.small_agent

takes lines `[FILE, STATE, LOG, KILL_AT]` and answers each with the exit code of a process. That
begins, does what is ordered in the folder `orders` beside LOG (each once, as the journal has it:
what was begun before is gone on with), and ends with 0 once that is told, or with 81 to begin anew.
LOG says on what it ran at its end. KILL_AT is the number of the write, of all that change the
folder, before which it kills itself; 0: it does not.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent import whole_file
from agent.clock import Clock
from agent.commands.verb import Verb
from agent.commands.verbs.config import ConfigVerbs
from agent.config import Config
from agent.errors import HoldfastError
from agent.health.conditions import Conditions
from agent.versions import folder
from agent.versions.judge import Seen
from agent.versions.notices import Notices
from agent.versions.plan import Hot
from agent.versions.start import Anew, begin
from agent.versions.versions import Versions

ANEW = 81


class Order:
    """One that is at hand, with what the journal keeps of it."""

    def __init__(self, path: Path) -> None:
        self.id = path.stem
        self.who = f"command {self.id}"
        self.step = ""

    async def note(self, step: str) -> None:
        self.step = step

    async def tell(self, progress: float, message: str = "") -> None:
        pass


def killed_before(write: int) -> None:
    """Whatever is written or removed in the folder counts as one."""
    left = write
    before = whole_file.replace
    unlink = Path.unlink

    def met() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(path: Path, content: bytes, mode: int = 0o666) -> None:
        met()
        before(path, content, mode)

    def removed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".yaml":
            met()
        unlink(path, missing_ok)

    folder.whole_file.replace = replace  # type: ignore[assignment]
    Path.unlink = removed  # type: ignore[method-assign]


async def main(file: Path, state: Path, log: Path) -> int:
    begun = begin(file, state, Clock())
    ending = asyncio.Event()
    level = [begun.settings.log_level]

    async def change(settings: Config) -> None:
        level[0] = settings.log_level

    def seen() -> Seen:
        good = level[0] != "error"  # what a bad configuration does to the link
        return Seen(9.0 if good else None, [])

    hot = {name: Hot(lambda _, __: "", change) for name in ("log_level", "domains")}
    conditions, clock = Conditions(Clock()), Clock()
    versions = Versions(begun, hot, seen, lambda _: ending.set(), Notices(conditions), clock)
    with begun:
        if begun.settings.jobs.jobs_max == 666:  # what a bad one does to a start
            os.kill(os.getpid(), signal.SIGKILL)
        watch = asyncio.create_task(versions.run())
        orders = asyncio.create_task(ordered(versions, log))
        stop = asyncio.create_task(ending.wait())
        await asyncio.wait([watch, orders, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in (watch, orders):
            with suppress(asyncio.CancelledError):
                if not task.done():
                    task.cancel()
                await task
        if ending.is_set():
            return ANEW
        log.write_text(f"level {level[0]} {begun.settings.jobs.jobs_max}")
        return 0


async def nothing_is(_: str) -> bool:
    """An order that has not ended."""
    return False


async def ordered(versions: Versions, log: Path) -> None:
    """One after the other; what has a result has it for ever. Then until no trial is left."""
    verbs: dict[str, Verb[Any]] = {
        one.name: one for one in ConfigVerbs(versions, nothing_is).verbs()
    }
    for path in sorted((log.parent / "orders").iterdir()):
        if path.with_suffix(".result").exists() or path.suffix != ".json":
            continue
        name, args = msgspec.json.decode(path.read_bytes())
        verb, order = verbs[name], Order(path)
        begun = path.with_suffix(".begun")
        act = verb.resume if begun.exists() else verb.run
        begun.touch()
        assert act
        try:
            result = msgspec.json.encode(await act(msgspec.convert(args, verb.args), order))
        except HoldfastError as error:
            result = f"failed: {error}".encode()
        path.with_suffix(".result").write_bytes(result)
    while versions.shown().trial:
        number = versions.changes.number
        await versions.changes.after(number)


def life(file: str, state: str, log: str, kill_at: int) -> int:
    """All of it; the exit code."""
    if kill_at:
        killed_before(kill_at)
    try:
        return asyncio.run(main(Path(file), Path(state), Path(log)))
    except Anew:
        return ANEW


if __name__ == "__main__":
    for line in sys.stdin:  # each in a process of its own, which has loaded all by now
        *names, kill_at = json.loads(line)
        if not (pid := os.fork()):
            os._exit(life(*names, kill_at))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
