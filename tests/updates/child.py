"""The agent, as far as its models go, in a process of its own that dies where it is told to.

`python -m tests.updates.child` reads orders, a line of JSON each: `folder`, `verb`, `args`, `at`.
For each it forks a process, which kills itself at the point `at` ('': at none), and answers with
its exit status: 100 and the version that answers in the end. So Python begins once for all of them.

A point is just before anything becomes durable: a step or the result in the journal, a file that is
replaced, a folder that is renamed. Each is a line of the file `points` when it is reached, and one
more, `killed`, where it is the end.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agent import config
from tests.updates.site import Journal, begun

WATCHED = config.Probation(probation_s=0.1, deaths_max=0, calls_min=5)


class Points:
    """Ends the process at one of them."""

    def __init__(self, folder: Path, at: str) -> None:
        self._file = (folder / "points").open("a", buffering=1)
        self._at = at
        self._rename, self._replace = Path.rename, Path.replace

    def reach(self, what: str) -> None:
        self._file.write(f"{what}\n")
        if what == self._at:
            self._file.write("killed\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def rename(self, path: Path, target: Any) -> Path:
        self.reach(f"rename {path.parent.parent.name}")
        return self._rename(path, target)

    def replace(self, path: Path, target: Any) -> Path:
        self.reach(f"replace {Path(target).name} {said(path)}")
        return self._replace(path, target)


def said(path: Path) -> str:
    """The state of a file that takes another one's place."""
    one = json.loads(path.read_text()).get("m", {})
    return str(one.get("state", one.get("version", "nothing")))


async def obeyed(folder: Path, verb: str, args: dict[str, Any], at: str) -> int:
    """Which version answers in the end."""
    crashed = (folder / "points").exists()
    points = Points(folder, at)
    journal = Journal(folder / "c-1.log")
    Path.rename = lambda path, target: points.rename(path, target)  # type: ignore[method-assign]
    Path.replace = lambda path, target: points.replace(path, target)  # type: ignore[method-assign]
    journal.on_write = lambda what: points.reach(f"note {what}")
    async with begun(folder, crashed=crashed, probation=WATCHED) as site:
        if journal.result is None:
            await site.order(journal, verb, **args)
        return await site.rig.version()


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                order["folder"] = Path(order["folder"])
                code = 100 + asyncio.run(obeyed(**order))
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
