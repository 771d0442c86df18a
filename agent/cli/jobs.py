"""`holdfast jobs`: the work that waits, how far it is, and what to do about it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from agent.cli.options import DEFAULT, Config, Json
from agent.errors import AgentUnreachable, RequestError

if TYPE_CHECKING:  # what a command needs, it loads itself: `--help` needs none of it
    from agent.cli.client import Client

app = typer.Typer(help="Durable jobs: work that outlasts its caller.", no_args_is_help=True)
JOBS = "/api/v1/jobs"
Id = Annotated[str, typer.Argument(metavar="ID", help="A job, as `holdfast jobs ls` names it.")]


@app.command("ls")
def ls(
    state: Annotated[
        str, typer.Option(help="Those that are queued, running, done, failed or cancelled.")
    ] = "",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """One line for each job, the oldest first."""
    client = _client(config)
    document: dict[str, Any] = {"jobs": []}
    following: int | None = 1
    while following is not None:
        only = f"&state={quote(state, safe='')}" if state else ""
        page = client.get(f"{JOBS}?from={following}{only}")
        document = {**page, "jobs": document["jobs"] + page["jobs"]}
        following = page["next"]
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.jobs_view import jobs

    jobs(document)


@app.command("submit")
def submit(
    file: Annotated[
        Path, typer.Argument(help="A request as for `infer`, in JSON, with `model`; -: from stdin.")
    ],
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Hand a job in; the same `id` twice is one job. docs/models.md shows the form."""
    try:
        order = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise RequestError(f"{file}: {error.strerror}", "name a file with a request") from error
    document = _client(config).upload(JOBS, order)
    if as_json:
        print(json.dumps(document))
    else:
        typer.echo(f"job {document['id']} is {document['state']}")


@app.command("result")
def result(job: Id, config: Config = DEFAULT) -> None:
    """Print what answered a job that is done, in JSON as `infer` gives it."""
    print(json.dumps(_client(config).get(f"{_route(job)}/result")))


@app.command("show")
def show(job: Id, config: Config = DEFAULT, as_json: Json = False) -> None:
    """How far a job is, when it will be done, and what answered it."""
    _print(_client(config).get(_route(job)), as_json)


@app.command("watch")
def watch(job: Id, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Show how a job goes, until it has ended. Exit code 0 when it is done, else 1."""
    from agent.cli.jobs_view import progress

    said, state = "", ""
    for name, document in _client(config).follow(f"{_route(job)}/events"):
        if name != "progress":
            continue
        line = json.dumps(document) if as_json else progress(document)
        if line != said:
            print(line, flush=True)
        said, state = line, document["state"] if document["ended_us"] is not None else ""
    if not state:
        raise AgentUnreachable(
            "the agent ended while the job was under way", "start it: the job goes on; watch again"
        )
    raise typer.Exit(0 if state == "done" else 1)


@app.command("cancel")
def cancel(job: Id, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Give up a job that has not ended, in the middle of its work if need be."""
    _print(_client(config).post(f"{_route(job)}/cancel"), as_json)


@app.command("rm")
def rm(job: Id, config: Config = DEFAULT, as_json: Json = False) -> None:
    """Remove a job that has ended, with its result."""
    document = _client(config).delete(_route(job))
    typer.echo(json.dumps(document) if as_json else f"job {job} is removed")


def _client(config: Path) -> "Client":
    from agent.cli.client import Client

    return Client.of(config)


def _route(job: str) -> str:
    return f"{JOBS}/{quote(job.encode(errors='surrogateescape'), safe='')}"


def _print(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    from agent.cli.jobs_view import job

    job(document)
