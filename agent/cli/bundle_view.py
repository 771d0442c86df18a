"""What `holdfast bundle` shows people."""

import sys
from typing import Any, Self

from rich import progress as bars
from rich.text import Text

from agent.cli.screen import Console
from agent.cli.units import size
from agent.words import counted, printable

WORDS = {"taken": "green", "nothing_new": "green", "whole": "green"}


class Progress:
    """How far an export is: a bar at a terminal, a line for each file elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: bars.Progress | None = None
        self._task: bars.TaskID | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.TaskProgressColumn(),
                bars.DownloadColumn(binary_units=True),
                bars.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("exporting")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more of it."""
        if self._bar:
            self._bar.stop()

    def tell(self, state: dict[str, Any]) -> None:
        """The export is so far."""
        if self._bar and self._task is not None:
            total = max(state["size_bytes"], state["size_bytes_done"])
            self._bar.update(self._task, completed=state["size_bytes_done"], total=total)

    def wrote(self, file: dict[str, Any]) -> None:
        """A file is whole, and on the disk."""
        line = f"{file['file']}  {size(file['size_bytes'])}"
        if self._bar:
            self._bar.console.print(Text(line))
        elif not self._quiet:
            print(line, flush=True)


def imported(results: list[dict[str, Any]]) -> None:
    """`import`."""
    console = Console(highlight=False, soft_wrap=True)
    for one in results:
        head = Text(printable(one["file"]) + ": ")
        head.append(one["verdict"].replace("_", " "), style=WORDS.get(one["verdict"], "red"))
        console.print(head)
        if "error" in one:
            _say_why(console, one)
            continue
        for order in one["commands"]:
            why = f": {order['message']}" if order["message"] else ""
            said = f"  {order['name']} {order['id']}: {order['state']}{why}"
            console.print(Text(printable(said)))
        if not one["commands"]:
            said = f"  {counted(one['delivered'], 'record')} acknowledged and deleted here"
            console.print(Text(said))
        for why in one["refused"]:
            console.print(Text(f"  {why}"), style="red")


def _say_why(console: Console, found: dict[str, Any]) -> None:
    """An error may name the file, whose name may hold anything."""
    console.print(Text("  " + printable(found["error"])))
    console.print(Text("  try: " + printable(found["hint"])))


def checked(found: dict[str, Any]) -> None:
    """`check`."""
    console = Console(highlight=False, soft_wrap=True)
    head = Text(printable(found["file"]) + ": ")
    head.append(found["verdict"].replace("_", " "), style=WORDS.get(found["verdict"], "red"))
    console.print(head)
    if "error" in found:
        _say_why(console, found)
        return
    kind = {"ack": "acks for", "commands": "commands for"}.get(found["kind"], "data of")
    more = "more parts follow" if found["more"] else "the last part"
    console.print(Text(f"  {kind} device {found['device']}, export {found['export']}"))
    console.print(Text(f"  part {found['part']}, {more}, made {printable(found['created'])}"))
    console.print(Text(f"  signed by {found['by']} ({found['signer']})"))
    for epoch, streams in found["covers"].items():
        for stream, (first, last) in streams.items():
            console.print(Text(printable(f"  {stream} #{first} to #{last}  epoch {epoch}")))
    records = counted(found["records"], "record")
    console.print(Text(f"  {records}, {size(found['blob_bytes'])} of audio"))
