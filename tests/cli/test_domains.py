"""`holdfast domains` and the orders of `holdfast models`, as a technician types them."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli.client import Refused
from agent.cli.domains_view import STEPS
from bench.models import not_numbers
from tests.inference.catalog.repository import install
from tests.inference.domains.rig import put
from tests.outside import HOLDFAST, ROOT, Checked, Device, as_json, running, until

Done = subprocess.CompletedProcess[str]


class Site:
    """An agent and its technician."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "models"
        for name in ("m", "other"):
            put(self.root, 1, name)
        put(self.root, 2)
        install(self.root, not_numbers(), version=3)
        shutil.copytree(ROOT / "models/speech", self.root / "speech")
        domains = {"d": {"models": ["m", "other"], "restart_s_min": 0.01}}
        self.device = Device(folder, {"models": {"path": str(self.root)}, "domains": domains})

    def run(self, *words: str, columns: int = 200) -> Done:
        environment = {**os.environ, "COLUMNS": str(columns)}
        return subprocess.run(
            [str(HOLDFAST), *words, "--config", str(self.device.config)],
            capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment,
        )  # fmt: skip

    def change(self, **domains: object) -> None:
        """Other domains stand in the configuration."""
        content = yaml.safe_load(self.device.config.read_text())
        content["domains"] = domains
        self.device.config.write_text(yaml.safe_dump(content))

    def conditions(self) -> dict[str, str]:
        return {one["name"]: one["cause"] for one in self.device.status()["conditions"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("domains"))
    with running(site.device):
        domains = site.device.status
        until(lambda: all(d["ready"] for d in domains()["domains"].values()), "all are ready")
        yield site


def test_a_refused_newest_version_is_shown_everywhere(site: Site) -> None:
    assert "m/2@" in site.conditions()["version_refused"]
    assert "not finite" in site.conditions()["version_refused"]
    listed = site.run("models", "ls")
    lines = {tuple(line.split()[:2]): line for line in listed.stdout.splitlines()}
    assert "serves" in lines["m", "2"]
    assert "serves" not in lines["m", "3"]
    assert "m/2: it serves in the place of another: m/3@" in listed.stdout
    assert "version_refused" in site.run("status").stdout


def test_versions_are_loaded_rolled_back_and_unloaded(site: Site) -> None:
    done = site.run("models", "load", "m/3")
    assert done.returncode == 1
    assert "is not admitted: from zeros, its output y is not finite" in done.stderr
    assert "try: where that is right, give it golden inputs" in done.stderr
    finite = install(site.root, not_numbers(), version=4, finite=True)
    done = site.run("models", "load", "m/4")
    assert "try: where zeros are nothing for it, give it golden inputs" in done.stderr
    shutil.rmtree(finite)
    assert "an operator ordered: load m: it is refused: m/3@" in site.device.log.read_text()
    assert site.run("models", "load", "m/1").stdout.endswith(" serves\n")
    assert "version_refused" not in site.conditions()
    rows = as_json(site.run("models", "ls", "--json"))["models"]
    serving = {(r["name"], r["version"]) for r in rows if r["serves"]}
    assert serving == {("m", 1), ("other", 1), ("speech", 1)}
    for version in (2, 1):
        assert f"m/{version}@" in site.run("models", "rollback", "m").stdout
    assert site.run("models", "unload", "other").stdout == "other serves no longer\n"
    assert "the only model of domain d" in site.run("models", "unload", "m").stderr
    assert site.run("models", "load", "other").returncode == 0
    for words, said in {
        ("load", "m/9"): "there are 1, 2, 3",
        ("load", "nope"): "no domain has the model 'nope'",
        ("load", "m/x"): "'x' is no version",
    }.items():
        done = site.run("models", *words)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr


def test_domains_are_applied_by_the_command_and_by_sighup(site: Site) -> None:
    both = {"models": ["m", "other"], "restart_s_min": 0.01}
    assert "nothing to do" in site.run("domains", "apply").stdout
    site.change(d={**both, "queue_max": 9})
    assert site.run("domains", "apply").stdout == "domain d: changed\n"
    site.change(d=both, e={"models": ["speech"]})
    done = site.run("domains", "apply")
    assert done.returncode != 0
    assert "speech is in domain audio already" in done.stderr
    site.change(d={**both, "queue_max": "many"})
    assert "domains.d.queue_max" in site.run("domains", "apply").stderr
    os.kill(site.device.pid, signal.SIGHUP)
    until(lambda: "domains_not_applied" in site.conditions(), "it is said")
    assert "queue_max" in site.conditions()["domains_not_applied"]
    site.change(d={**both, "models": ["m"]}, e={"models": ["other"]})
    os.kill(site.device.pid, signal.SIGHUP)
    domains = site.device.status
    until(lambda: domains()["domains"].get("e", {}).get("ready"), "it is done")
    until(lambda: "domains_not_applied" not in site.conditions(), "it is over")
    listed = site.run("domains", "ls").stdout
    assert "other/1" in listed
    site.change(d={**both, "queue_max": "many"})
    os.kill(site.device.pid, signal.SIGHUP)
    until(lambda: "domains_not_applied" in site.conditions(), "it is said again")
    site.change(d=both)
    assert set(site.run("domains", "apply").stdout.splitlines()) == {
        "domain d: changed",
        "domain e: removed",
    }
    assert "domains_not_applied" not in site.conditions(), "the command ends it, too"


def test_the_domains_and_their_calls_fit_into_80_columns(site: Site) -> None:
    rows = [line.split() for line in site.run("domains", "ls", columns=80).stdout.splitlines()]
    assert rows[0] == ["domain", "class", "state", "model", "on", *rows[0][5:]]
    assert rows[1] == ["audio", "realtime", "ready", "speech/1", "cpu", "1", "0", "0"]
    until(lambda: site.device.status()["domains"]["d"]["ready"], "it is ready")
    body: dict[str, Any] = {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    }
    client, url = Checked(site.device.socket), "/v2/models/m/infer"
    assert client.post(url, body)["outputs"]
    body["inputs"][0]["name"] = "z"
    with pytest.raises(Refused) as refused:
        client.post(url, body)
    assert refused.value.hint == "`holdfast models verify m` shows what it takes"
    with pytest.raises(Refused, match="no domain has the model 'nobody'"):
        client.post("/v2/models/nobody/infer", body)
    told = site.run("domains", "trace", "d", columns=80).stdout
    head, erred, call, *_ = told.splitlines()
    assert head.split() == ["call", "model", "class", "with", *STEPS.values()]
    assert call.split()[1:4] == ["m", "interactive", "0"]
    assert len(call.split()) == 10
    assert erred.split()[10:] == ["refused"]
    assert "…" not in told


def test_the_domain_that_hears_stays(site: Site) -> None:
    content = yaml.safe_load(site.device.config.read_text())
    for change, said in (
        ({"audio": {"domain": "d"}}, "audio hears as long as this agent runs"),
        ({"domains": {"audio": {"models": ["m"]}}}, "speech hears as long as this agent runs"),
    ):
        site.device.config.write_text(yaml.safe_dump(content | change))
        done = site.run("domains", "apply")
        assert done.returncode != 0
        assert said in done.stderr
        assert "restart the agent" in done.stderr
    site.device.config.write_text(yaml.safe_dump(content))


def test_a_restart_and_a_trace_of_what_is_not_there(site: Site) -> None:
    before = site.device.status()["domains"]["d"]["pid"]
    assert site.run("domains", "restart", "d").returncode == 0
    until(lambda: site.device.status()["domains"]["d"]["pid"] not in (before, None), "another")
    assert "answered no call yet" in site.run("domains", "trace", "audio").stdout
    for words in (("restart", "x"), ("trace", "x")):
        done = site.run("domains", *words)
        assert (done.returncode, "no domain 'x'" in done.stderr) == (1, True)
