"""What `holdfast sync` shows people, and the lines of it that `holdfast status` has too."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console
from agent.cli.units import size, span
from agent.words import counted

WHY = {
    "settings": "as configured",
    "hours": "by the hours of the day",
    "order": "by an operator's order",
    "now": "by `sync now`",
}
THIN_BYTES_PER_S = 10_240  # below, single bytes count
HELD_BACK = {"": "", "backlog": ", [yellow]only live records go[/]", "all": ", [red]used up[/]"}


def state(document: dict[str, Any]) -> None:
    """The whole state."""
    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for row in (
        ("link", link(document)),
        *([("", escape(document["down_cause"]))] if document["down_cause"] else []),
        ("acks", acks(document)),
        ("backlog", backlog(document)),
        ("rate", rate(document)),
        ("limit", _limit(document)),
        ("quota", _quota(document["quota"])),
        ("heartbeat", f"each {span(document['heartbeat_s'])}"),
    ):
        table.add_row(*row)
    console.print(table)
    if document["backlog"] and document["backlog"]["streams"]:
        console.print(_streams(document["backlog"]["streams"]))


def link(document: dict[str, Any]) -> str:
    """Up or down, since when, to whom."""
    word = f"up {span(document['connected_s'])}" if document["connected"] else _down(document)
    broker = "embedded broker" if document["embedded"] else escape(document["broker"])
    return f"{word}, {broker}, MQTT {document['protocol']}{_paused(document)}"


def _down(document: dict[str, Any]) -> str:
    down_s = document.get("down_s")  # a snapshot may be of a former version
    return "[red]down[/]" + ("" if down_s is None else f" {span(down_s)}")


def _paused(document: dict[str, Any]) -> str:
    if not document.get("paused"):  # a snapshot may be of a former version
        return ""
    left_s = document["paused_for_s"]
    return ", [yellow]paused[/]" + ("" if left_s is None else f" for {span(left_s)} more")


def acks(document: dict[str, Any]) -> str:
    """Who acknowledges, and when that was last."""
    age_s = document["last_ack_age_s"]
    last = "none yet" if age_s is None else f"last {span(age_s)} ago"
    return f"from the {document['ack_from']}, {last}"


def backlog(document: dict[str, Any]) -> str:
    """What waits, and until when."""
    waiting = document["backlog"]
    if waiting is None:
        return "unknown"
    if not waiting["records"]:
        return "nothing waits"
    return f"{counted(waiting['records'], 'record')}, {size(waiting['bytes'])}, {_end(document)}"


def _end(document: dict[str, Any]) -> str:
    """When nothing will wait any more, or why nobody knows."""
    if document["eta_s"] is not None:
        return f"empty in {span(document['eta_s'])}"
    rates = document["rate"]
    leaving, coming = rates["acknowledged_bytes_per_s"], rates["arriving_bytes_per_s"]
    if document["paused"] or not leaving or coming is None:
        return "time to empty unknown"
    return "it does not shrink"


def rate(document: dict[str, Any]) -> str:
    """What was measured."""
    rates = document["rate"]
    if rates["sent_bytes_per_s"] is None:
        return "unknown"
    return (
        f"{_per_s(rates['sent_bytes_per_s'])} sent, "
        f"{rates['acknowledged_records_per_s']:,.1f} records/s acknowledged"
    )


def _per_s(bytes_per_s: float) -> str:
    thin = bytes_per_s < THIN_BYTES_PER_S
    return f"{bytes_per_s:.0f} B/s" if thin else f"{size(round(bytes_per_s))}/s"


def _limit(document: dict[str, Any]) -> str:
    limit = document["limit"]
    most, left_s = limit["rate_bytes_per_s_max"], limit["for_s"]
    words = [f"{'none' if most is None else _per_s(most)}, {WHY[limit['why']]}"]
    if left_s is not None:
        words.append(f"for {span(left_s)} more")
    return ", ".join(words)


def _quota(quota: dict[str, Any] | None) -> str:
    if quota is None:
        return "none"
    return (
        f"{size(quota['used_bytes'])} of {size(quota['bytes_per_day'])} used"
        f"{HELD_BACK[quota['reached']]}, begins anew in {span(quota['begins_anew_s'])}"
    )


def _streams(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stream", overflow="fold")
    for column in ("priority", "records", "size", "oldest"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        age_s = row["oldest_age_s"]
        table.add_row(
            *(escape(row["name"]), str(row["priority"]), f"{row['records']:,}"),
            *(size(row["bytes"]), "-" if age_s is None else span(age_s)),
        )
    return table
