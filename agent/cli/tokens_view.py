"""What `holdfast tokens` shows people."""

from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console
from agent.words import printable

NEAR = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # all addresses are no name that the agent has


def made(document: dict[str, Any], scheme: str, host: str, port: int) -> None:
    """`create`: the token alone on its line, to be copied, and how it is used."""
    print(printable(document["token"]))
    console = Console(highlight=False, soft_wrap=True)
    name, scopes = escape(document["name"]), ", ".join(document["scopes"])
    console.print(f"\n[bold]{name}[/] may {scopes} with it. It is not shown again.")
    near = NEAR.get(host, host)
    url = f"{scheme}://{f'[{near}]' if ':' in near else near}:{port}/api/v1/session"
    console.print(f'try it:  curl -H "Authorization: Bearer {document["token"]}" {escape(url)}')
    console.print(f"take it back:  holdfast tokens revoke {document['id']}")


def tokens(document: dict[str, Any]) -> None:
    """`ls`."""
    console = Console(highlight=False)
    if not document["tokens"]:
        console.print("no tokens; make one: holdfast tokens create NAME --scope read")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("id", "name", "scopes", "made"):
        table.add_column(column, no_wrap=column in ("id", "made"), overflow="fold")
    for row in document["tokens"]:
        made_at = datetime.fromtimestamp(row["created_us"] / 1e6).strftime("%Y-%m-%d %H:%M")
        table.add_row(row["id"], escape(row["name"]), ", ".join(row["scopes"]), made_at)
    console.print(table)
