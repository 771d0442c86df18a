"""What `holdfast domains` shows people: within 80 columns, with what is long below the table."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console

CAUSE_CHARS = 160  # of a fault's, which may quote a page
STEPS = {  # of a call, in their order
    "queued_ms": "queue",
    "sent_ms": "sent",
    "taken_apart_ms": "apart",
    "computed_ms": "run",
    "returned_ms": "back",
    "total_ms": "all",
}
LEGEND = """\
milliseconds: in the queue, until its process had it, until that had taken it
apart, in the run, on the way back, in all; with: calls in one batch with it"""


def listed(found: dict[str, Any]) -> None:
    """The domains as a table."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("domain", "class", "state", "model", "on"):
        table.add_column(column, overflow="fold", no_wrap=column in {"class", "state", "on"})
    for column in ("instances", "waiting", "restarts"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, one in found.items():
        models = [label.partition("@")[0] for label in one["model"].split(", ")]
        words = (escape(name), one["class"], _state(one), escape("\n".join(models)), device(one))
        numbers = (len(one["instances"]), one["waiting"], one["restarts"])
        table.add_row(*words, *map(str, numbers))
    console.print(table)
    for name, one in found.items():
        if not one["ready"] or one["quarantined"]:
            console.print(f"[red]x[/] {escape(name)}: {escape(one['cause'])}")
        for model, fall in one["fallen"].items():
            console.print(f"[yellow]![/] {escape(name)}/{escape(model)}: {escape(_fallen(fall))}")


def device(domain: dict[str, Any]) -> str:
    """Where a domain runs, as `devices` of the configuration names it."""
    return str(domain["ep"]).removesuffix("ExecutionProvider").lower() or "-"


def _fallen(fall: dict[str, Any]) -> str:
    """What a model's stay on the CPU costs, and when it may end."""
    slower = f", {fall['cost_ratio']:.2g} times as slow" if fall["cost_ratio"] else ""
    probes = f"{fall['passes']} of {fall['passes_min']} probes passed"
    return (
        f"on the CPU for {fall['age_s']:.0f} s{slower}; {probes}, the next in "
        f"{fall['probe_s']:.0f} s; {fall['fault']}: {fall['cause'][:CAUSE_CHARS]}"
    )


def _state(domain: dict[str, Any]) -> str:
    if domain["quarantined"]:
        return "[red]resting[/]"
    return "ready" if domain["ready"] else "[red]down[/]"


def traced(found: dict[str, Any]) -> None:
    """Calls, and in which step each spent its milliseconds."""
    console = Console(highlight=False)
    if not found["calls"]:
        console.print(f"domain {escape(found['domain'])} has answered no call yet")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("call", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("with", justify="right", no_wrap=True)
    for step in STEPS.values():
        table.add_column(step, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for call in found["calls"]:
        notes = [call["fault"] or ""]
        if call["tries"]:
            notes.append(f"try {call['tries'] + 1}")
        words = (str(call["id"]), escape(call["model"]), call["class"], str(call["batched"] - 1))
        steps = [_ms(call[key]) for key in STEPS]
        table.add_row(*words, *steps, escape(" ".join(filter(None, notes))))
    console.print(table)
    console.print(f"[dim]{LEGEND}[/]")


def _ms(step_ms: float | None) -> str:
    """Three digits or so: 0.09, 12.5, 5887; nothing where the step was not reached."""
    if step_ms is None:
        return ""
    digits = 2 if step_ms < 10 else 1 if step_ms < 100 else 0
    return f"{step_ms:.{digits}f}"
