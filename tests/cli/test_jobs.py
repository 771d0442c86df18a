"""`holdfast jobs`, before real doors and a real store: what it shows, and who obeys it."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from tests.api.test_jobs import House, order
from tests.outside import DEADLINE_S, HOLDFAST, ROOT


class Site(House):
    """The doors, and the command beside them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = folder / "config.yaml"
        whole = {"link": {"ack_from": "broker"}, "api": {"socket": self.socket}}
        self.config.write_text(yaml.safe_dump(whole))

    async def command(self, *more: str, columns: int = 100) -> tuple[int, str]:
        """What `holdfast jobs` says on the terminal of a person, and its exit code."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(HOLDFAST), "jobs", *more, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": str(columns)},
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    found = Site(tmp_path)
    async with found.desk, found:
        yield found


async def test_what_it_shows_and_who_obeys(site: Site) -> None:
    assert await site.command("ls") == (0, "no jobs, 0 B\n")
    done = await site.done(id="first")
    site.desk.models.go.clear()
    await site.desk.submit(1, 9, name="second", klass="interactive")
    await site.desk.submit(2, 9, "other", name="third")

    async def begun() -> bool:
        return (await site.desk.jobs.get("second")).state == "running"

    await site.desk.until(begun, "it is begun")
    code, said = await site.command("ls")
    assert code == 0
    assert "1 queued, 1 running, 1 done" in said
    lines = {line.split()[0]: line for line in said.splitlines()[2:]}
    assert list(lines) == ["first", "second", "third"]
    assert "done" in lines["first"]
    assert "6/6" in lines["first"]
    assert lines["first"].split()[-1] == "-"
    assert "interactive  running" in lines["second"]
    assert "unknown" in lines["third"], "its model was never measured"

    code, said = await site.command("ls", "--state", "done", "--json")
    assert [job["id"] for job in json.loads(said)["jobs"]] == [done]
    code, said = await site.command("show", "first")
    assert (code, "double/1@0123 on cpu" in said, "6 of 6 rows (100%)" in said) == (0, True, True)
    code, said = await site.command("show", "second", "--json")
    assert json.loads(said)["state"] == "running"

    code, said = await site.command("rm", "second")
    assert (code, "job second is running" in said) == (1, True)
    code, said = await site.command("cancel", "second")
    assert (code, "cancelled" in said) == (0, True)
    assert await site.command("rm", "second") == (0, "job second is removed\n")
    code, said = await site.command("show", "second")
    assert (code, "no job 'second'" in said, "try: `holdfast jobs ls`" in said) == (1, True, True)
    code, said = await site.command("cancel", "first")
    assert (code, "job first is done" in said) == (1, True)
    code, said = await site.command("ls", "--state", "soon")
    assert (code, "state: invalid enum value" in said, "queued" in said) == (1, True, True)


async def test_a_job_is_handed_in_from_a_file_and_its_result_taken(site: Site) -> None:
    file = site.config.with_name("order.json")
    file.write_text(json.dumps(order(id="filed")))
    code, said = await site.command("submit", str(file))
    assert (code, said) == (0, "job filed is queued\n")
    await site.desk.ended("filed")
    code, said = await site.command("result", "filed")
    assert code == 0
    assert json.loads(said)["outputs"]
    code, said = await site.command("submit", str(file), "--json")
    assert (code, json.loads(said)["state"]) == (0, "done"), "the same job"
    file.write_text("no JSON")
    code, said = await site.command("submit", str(file))
    assert (code, "JSON is malformed" in said) == (1, True)
    code, said = await site.command("submit", str(file.with_name("none")))
    assert (code, "No such file" in said) == (1, True)
    code, said = await site.command("result", "none")
    assert (code, "no job 'none'" in said) == (1, True)


async def test_what_stands_in_a_job_does_not_colour_the_terminal(site: Site) -> None:
    def refuse(_: object) -> None:
        from agent.errors import ModelError

        raise ModelError("output [red]y[/] is NaN")

    site.desk.models.before = refuse
    await site.desk.submit(1, 9, name="a")
    await site.desk.ended("a", "failed")
    code, said = await site.command("show", "a")
    assert (code, "output [red]y[/] is NaN" in said) == (0, True)


async def test_many_pages_are_one_list(site: Site) -> None:
    site.desk.models.go.clear()
    site.desk.jobs._arrivals._limits = type(site.desk.jobs.limits)(jobs_max=250)
    await asyncio.gather(*(site.desk.submit(n, 2) for n in range(230)))
    _, said = await site.command("ls", "--json")
    numbers = [job["number"] for job in json.loads(said)["jobs"]]
    assert numbers == list(range(1, 231))


async def test_a_line_a_job_on_a_terminal_of_80_columns(site: Site) -> None:
    site.desk.models.go.clear()
    names = [(await site.ask("POST", "", order()))[1]["id"] for _ in range(3)]
    _, said = await site.command("ls", columns=80)
    _, heading, *lines = said.splitlines()
    assert heading.split() == ["id", "model", "state", "done", "age", "left"]
    assert [line.split()[0] for line in lines] == names
    assert all(len(line) <= 80 for line in lines)
    assert "0%" in lines[0]


async def test_an_id_stays_whole_on_a_narrow_terminal(site: Site) -> None:
    _, told = await site.ask("POST", "", order())
    assert told["id"] in (await site.command("ls", columns=60))[1]
