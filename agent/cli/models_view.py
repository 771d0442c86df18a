"""What `holdfast models` shows people."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from agent.cli.screen import Console
from agent.cli.units import size
from agent.words import counted

Row = dict[str, Any]
DIGITS = 12  # of a digest, as a model's label has them


def listed(document: dict[str, Any]) -> None:
    """`ls`."""
    console = Console(highlight=False)
    rows = document["models"]
    if not rows:
        console.print("no models; they lie in <models>/<name>/<version>/")
        return
    newest = {row["name"]: row["version"] for row in rows}  # ascending: the last one stays
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("model", "version", "engine", "size", "digest", ""):
        numeric = column in {"version", "size"}
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        about = ["[bold]serves[/]"] if row.get("serves") else []
        if row.get("breaker") not in (None, "closed"):
            about.append(f"[red]breaker {row['breaker']}[/]")
        about += ["former"] if row.get("former") and not row.get("serves") else []
        about += ["newest"] if row["version"] and newest[row["name"]] == row["version"] else []
        if "error" in row:
            about.append("[red]cannot be read, see below[/]")
            version = str(row["version"] or "-")
            table.add_row(escape(row["name"]), version, "-", "-", "-", ", ".join(about))
            continue
        if row["golden"]:
            about.append(counted(row["golden"], "golden pair"))
        about += ["signed"] if row["signature"] else []
        table.add_row(
            *(escape(row["name"]), str(row["version"]), row["engine"], size(row["size_bytes"])),
            *(row["sha256"][:DIGITS], ", ".join(about)),
        )
    console.print(table)
    for row in rows:
        if "error" in row:
            _say_error(console, row)
        told = [*row.get("warnings", [])]
        if why := row.get("instead_of"):
            told.append(f"it serves in the place of another: {why}")
        for warning in told:
            _say(console, "[yellow]![/]", f"{row['name']}/{row['version']}: {warning}")


def verdicts(document: dict[str, Any]) -> None:
    """`verify`."""
    console = Console(highlight=False)
    for row in document["models"]:
        _verdict(console, row)
    said = [f"[green]{counted(document['good'], 'version')} good[/]"] if document["good"] else []
    if document["refused"]:
        said.append(f"[bold red]{counted(document['refused'], 'version')} REFUSED[/]")
    console.print(", ".join(said) or "no models; they lie in <models>/<name>/<version>/")


def signed(document: dict[str, Any]) -> None:
    """`sign`."""
    print(f"{document['name']}/{document['version']} is signed: {document['file']}")
    print(f"public key, for models.signed_by: {document['key']}")


def quantized(document: dict[str, Any]) -> None:
    """`quantize`."""
    console = Console(highlight=False)
    low, high = document["speed_spread"]
    console.print(f"[bold]{escape(document['model'])}[/]  {document['method']} INT8")
    console.print(f"  of      {escape(document['of'])}")
    console.print(f"  size    {document['size_ratio']:.2f} of it")
    console.print(
        f"  speed   {document['speed_ratio']:.2f} times (quartiles {low:.2f} to {high:.2f}), "
        "one thread, this machine"
    )
    console.print(
        f"  error   {document['error_rms']:.2%} of the outputs, {document['error_max']:.3g} at "
        f"most; tolerance {document['atol']:.3g}"
    )
    console.print(f"  inputs  {document['cases']}, {escape(document['inputs'])}")
    console.print(f"  folder  {escape(document['folder'])}")
    if document["speed_ratio"] < 1:
        console.print("[yellow]![/] it is slower than the float model; try the other method")


def _verdict(console: Console, row: Row) -> None:
    good = row["verdict"] == "good"
    verdict = "[green]good[/]" if good else "[bold red]REFUSED[/]"
    version = f"/{row['version']}" if row["version"] else ""
    console.print(f"[bold]{escape(row['name'])}{version}[/]  {verdict}")
    if "sha256" in row:
        signer = f", signed by {row['signer']}" if row["signer"] else ""
        digest = row["sha256"][:DIGITS]
        console.print(f"  {row['engine']}, {size(row['size_bytes'])}, sha256 {digest}…{signer}")
        for kind in ("inputs", "outputs"):
            for i, spec in enumerate(row[kind]):
                shape = ", ".join("any" if n < 0 else str(n) for n in spec["shape"])
                lead = kind if i == 0 else ""
                console.print(
                    f"  {lead:<8} {escape(spec['name'])}  {spec['dtype']} [{shape}]", markup=False
                )
        golden = counted(row["golden"], "golden pair") if row["golden"] else "no golden pairs"
        batches = "batches" if row["batching"] else "does not batch"
        console.print(f"  {batches}, {golden}")
    for warning in row.get("warnings", []):
        _say(console, "[yellow]![/]", warning)
    for ep, one in row["eps"].items():
        if one["verdict"] == "good":
            opset = row["opsets"].get("ai.onnx", "?")
            console.print(f"  {ep}: has all its operators (opset {opset})")
        else:
            _say_error(console, one)
    if "error" in row:
        _say_error(console, row)


def _say_error(console: Console, row: Row) -> None:
    for mark, text in (("[red]x[/]", row["error"]), ("", row["hint"] and f"try: {row['hint']}")):
        if text:
            _say(console, mark, text)


def _say(console: Console, mark: str, text: str) -> None:
    """A line with a mark before it, folded below its own beginning."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=3, justify="right")
    table.add_column(overflow="fold")
    table.add_row(mark, escape(text))
    console.print(table)


VIEWS = {"ls": listed, "verify": verdicts, "sign": signed, "quantize": quantized}
