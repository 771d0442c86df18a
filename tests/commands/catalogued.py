"""The catalogue in docs/commands.md, as the verbs are: `python -m tests.commands.catalogued`."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from agent import config_file
from agent.app import App
from agent.commands.catalogue import VerbShown
from tests.outside import ROOT

PAGE = ROOT / "docs" / "commands.md"
BEGIN, END = "<!-- catalogue: python -m tests.commands.catalogued -->\n", "<!-- end -->\n"


def verbs() -> list[VerbShown]:
    """What an agent with the settings that ship takes; none is started."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        store = f"{{path: {folder}/store/holdfast.db}}"
        config.write_text(f"link: {{ack_from: broker}}\nstore: {store}\n")
        return App(config_file.load(config), config).commands.desk.catalogue.shown()


def page(text: str) -> str:
    """The page with the catalogue of now."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{_table()}{END}{after}"


def _table() -> str:
    rows = ["| command | scope | takes | what it does |", "|---|---|---|---|"]
    rows += [
        f"| `{one.name}` | {one.scope}{', grave' if one.grave else ''} | {_takes(one.args)} |"
        f" {one.summary}{'' if one.resumes else ' *'} |"
        for one in verbs()
    ]
    return (
        "\n".join(rows)
        + "\n\n\\* is told as `interrupted` when the agent ended meanwhile; the others go on.\n"
    )


def _takes(args: dict[str, Any]) -> str:
    needed = set(args.get("required", ()))
    return ", ".join(
        f"`{key}`" if key in needed else f"[`{key}`]" for key in args.get("properties", {})
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    sys.stdout.write(f"{PAGE} is as the verbs are\n")
