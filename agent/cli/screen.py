"""What the command shows people on their terminal."""

from collections.abc import Iterable

from rich import console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from agent.words import printable


class Console(console.Console):
    """Rich's, on which nothing that an agent says becomes an order to the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich has it; what is no character is shown as its number."""
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=_shown(one.text))


def _shown(text: str) -> str:
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))
