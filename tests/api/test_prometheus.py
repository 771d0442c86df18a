"""A real Prometheus asks a real agent; what is shipped for it loads, and wakes somebody."""

import json
import os
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.api.test_model_metrics import Board
from tests.outside import ROOT, free_port, program, until

SHIPPED = ROOT / "provisioning/prometheus"
PROMETHEUS, PROMTOOL = "prometheus", "promtool"
SCRAPE = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
WRONG = ("level=warn", "level=error", "duplicate", "out-of-order", "out of order")


class Prometheus:
    """A real one, with what we ship, that asks one agent; with its token, where it needs one."""

    def __init__(self, folder: Path, target: int, token_file: Path | None = None) -> None:
        self.port = free_port()
        self._log = folder / "prometheus.log"
        self._settings = folder / "scrape.yaml"
        whole = yaml.safe_load((SHIPPED / "scrape.yaml").read_text())
        whole["global"] = SCRAPE
        whole["rule_files"] = [str(SHIPPED / "alerts.yaml")]
        (job,) = whole["scrape_configs"]
        job["scrape_timeout"] = SCRAPE["scrape_timeout"]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        if token_file:
            job["authorization"] = {"credentials_file": str(token_file)}
        self._settings.write_text(yaml.safe_dump(whole))
        self._command = [
            program(PROMETHEUS, "prometheus"),
            f"--config.file={self._settings}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Prometheus":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: self._process.poll() is not None or self.answers(), "it answers")
        assert self._process.poll() is None, self.said
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def answers(self) -> bool:
        with suppress(OSError):
            return bool(self.ask("status/buildinfo"))
        return False

    def ask(self, what: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float:
        """The sum of what a query finds; 0 for nothing."""
        found = self.ask("query", query=query)["result"]
        return sum(float(one["value"][1]) for one in found)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    program(PROMETHEUS, "prometheus")
    found = Board(tmp_path_factory.mktemp("board"))
    found.domains["gpu"]["devices"] = ["cpu"]
    found.configure()
    found.start()
    try:
        until(lambda: all(d["ready"] for d in found.status()["domains"].values()), "ready")
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def prometheus(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus"), board.port) as found:
        until(lambda: found.value("up"), "a scrape")
        yield found


def test_it_finds_an_agent_that_is_up_and_nothing_to_complain_of(prometheus: Prometheus) -> None:
    until(lambda: prometheus.value('up{job="holdfast"}') == 1, "it is up")
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert prometheus.value("scrape_samples_scraped") > 100
    # It keeps what it scraped: no two samples were the same, no limit was met.
    assert prometheus.value("scrape_samples_post_metric_relabeling") == prometheus.value(
        "scrape_samples_scraped"
    )
    for one in prometheus.ask("rules")["groups"][0]["rules"]:
        assert one["health"] in ("ok", "unknown"), one
    assert not [line for line in prometheus.said.splitlines() if any(w in line for w in WRONG)]


def test_every_family_has_its_type_and_its_meaning_there(
    board: Board, prometheus: Prometheus
) -> None:
    ours = {
        one.name: one.type for one in text_string_to_metric_families(board.text()) if one.samples
    }
    known = prometheus.ask("metadata")
    for name, kind in ours.items():
        found = known.get(name) or known.get(f"{name}_total")
        assert found, name
        assert (found[0]["type"], bool(found[0]["help"])) == (kind, True), name


def test_what_is_counted_rises_with_the_calls(board: Board, prometheus: Prometheus) -> None:
    asked = 'holdfast_http_requests_total{route="/v2/models/{model}/infer",code="200"}'
    made = 'holdfast_model_calls_total{model="eager",outcome="ok"}'
    took = 'holdfast_http_request_duration_seconds_count{route="/v2/models/{model}/infer"}'
    before = {one: prometheus.value(one) for one in (asked, made, took)}
    for i in range(20):
        assert board.ask("eager", "x", [float(i)] * 64) == 200
    for one, value in before.items():
        until(lambda one=one, value=value: prometheus.value(one) >= value + 20, one)
        assert prometheus.value(one) == value + 20
    until(lambda: prometheus.value("rate(holdfast_http_requests_total[1m])") > 0, "a rate")
    assert prometheus.value("holdfast_http_requests_per_second") >= 0


def test_processes_are_known_by_their_standard_names(board: Board, prometheus: Prometheus) -> None:
    own = psutil.Process(board.pid)
    assert prometheus.value('process_start_time_seconds{job="holdfast"}') == pytest.approx(
        own.create_time(), abs=5
    )
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert prometheus.value(f'{name}{{job="holdfast"}}') > 0
    for name in ("resident_memory_bytes", "open_fds", "start_time_seconds"):
        for domain in ("audio", "some", "gpu"):
            assert prometheus.value(f'holdfast_domain_{name}{{domain="{domain}"}}') > 0


def test_the_time_of_processes_that_have_ended_is_not_taken_back(
    board: Board, prometheus: Prometheus
) -> None:
    spent = 'holdfast_domain_cpu_seconds_total{domain="gpu"}'
    until(lambda: prometheus.ask("query", query=spent)["result"], "it was seen")
    before = prometheus.value(spent)
    pid = board.status()["domains"]["gpu"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: prometheus.value('holdfast_domain_restarts_total{domain="gpu"}') == 1, "anew")
    until(lambda: prometheus.value('holdfast_domain_ready{domain="gpu"}') == 1, "ready")
    assert prometheus.value(spent) >= before
    assert prometheus.value(f"resets({spent}[1h])") == 0


def test_an_alert_begins_with_what_it_is_about(prometheus: Prometheus) -> None:
    def alerts() -> set[str]:
        return {one["labels"]["alertname"] for one in prometheus.ask("alerts")["alerts"]}

    until(lambda: "HoldfastLinkDown" in alerts(), "the link has been down from the start")
    assert "HoldfastStoreNearlyFull" not in alerts()


def run(*command: str, cwd: Path = SHIPPED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(PROMTOOL, "prometheus"), *command], capture_output=True, text=True, cwd=cwd
    )


def test_what_is_shipped_is_clean() -> None:
    for command in (("check", "config", "scrape.yaml"), ("check", "rules", "alerts.yaml")):
        done = run(*command)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "SUCCESS" in done.stdout


def test_the_alerts_ask_for_what_there_is(board: Board) -> None:
    there = {
        sample.name
        for one in text_string_to_metric_families(board.text())
        for sample in one.samples
    } | {"up", "holdfast_condition", "holdfast_ledger_dropped_records_total"}
    for group in yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            words = rule["expr"].replace("(", " ").replace("{", " ").replace("[", " ").split()
            asked = {one for one in words if one.startswith("holdfast_")}
            assert asked <= there, rule["alert"]
            assert rule["annotations"].keys() == {"summary", "remedy"}


def test_each_alert_fires_in_its_time(tmp_path: Path) -> None:
    for name, case in yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text()).items():
        whole = {"rule_files": [str(SHIPPED / "alerts.yaml")], "tests": [case]}
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(whole))
        done = run("test", "rules", str(tmp_path / "test.yaml"), cwd=tmp_path)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
