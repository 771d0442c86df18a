"""What a scraper and the status learn of domains and models, from a real agent."""

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from onnxruntime import get_available_providers
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import BusyError, CallLost, LateError, RequestError, RunError
from agent.inference.domains.figures import Figures
from agent.inference.domains.work import Class, Work
from bench.models import tiny, write
from tests.outside import Checked, Device, free_port, program, until

KEYS = {"domain": "some", "model": "tiny"}


class Board(Device):
    """An agent with a domain of two models, and one that wants a GPU."""

    def __init__(self, folder: Path) -> None:
        root = folder / "models"
        shutil.copytree(Path(__file__).parents[2] / "models/speech", root / "speech")
        write(root, "tiny", tiny(), deterministic=True)
        write(root, "other", tiny())
        write(root, "eager", tiny(), deterministic=False)
        self.port = free_port()
        self.domains: dict[str, dict[str, Any]] = {
            "some": {"models": ["tiny", "other"], "instances": {"min": 1, "max": 1, "spare": 1}},
            "gpu": {"models": ["eager"], "devices": ["cuda", "cpu"]},
        }
        settings = {"models": {"path": str(root)}, "domains": self.domains}
        super().__init__(folder, settings)
        self.configure()

    def configure(self) -> None:
        whole = yaml.safe_load(self.config.read_text())
        whole["api"]["port"] = self.port
        whole["domains"] = self.domains
        self.config.write_text(yaml.safe_dump(whole))

    def ask(self, model: str, name: str, values: list[float]) -> int:
        """Infer one row; the status."""
        tensor = {"name": name, "shape": [1, len(values)], "datatype": "FP32", "data": values}
        url = f"http://127.0.0.1:{self.port}/v2/models/{model}/infer"
        try:
            urllib.request.urlopen(url, json.dumps({"inputs": [tensor]}).encode(), 30).close()
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        return 200

    def text(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as said:
            return str(said.read().decode())

    def value(self, sample: str, **labels: str) -> float | None:
        """One sample by its full name; labels not named may be any."""
        for family in text_string_to_metric_families(self.text()):
            for one in family.samples:
                if one.name == sample and labels.items() <= one.labels.items():
                    return one.value
        return None

    def fallbacks(self) -> list[dict[str, Any]]:
        held = self.status()["conditions"]
        return [one for one in held if one["name"] == "device_fallback"]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    found = Board(tmp_path_factory.mktemp("board"))
    found.start()
    try:
        names = ("some", "gpu")
        until(lambda: all(found.status()["domains"][n]["ready"] for n in names), "ready")
        spare = {"domain": "some", "state": "spare"}
        until(lambda: found.value("holdfast_domain_instances", **spare) == 1, "a spare")
        yield found
    finally:
        found.stop()


def test_each_call_is_counted_by_what_became_of_it(board: Board) -> None:
    for i in range(3):
        assert board.ask("tiny", "x", [float(i)] * 64) == 200
    assert board.ask("tiny", "x", [0.0] * 64) == 200  # from the cache
    assert board.ask("tiny", "x", [0.0] * 63) == 400
    calls = "holdfast_model_calls_total"
    assert board.value(calls, **KEYS, outcome="ok") == 3
    assert board.value(calls, **KEYS, outcome="refused") == 1
    assert board.value(calls, model="other", outcome="ok") is None
    assert board.value("holdfast_cache_hits_total", **KEYS) == 1
    assert board.value("holdfast_cache_misses_total", **KEYS) == 4
    assert (board.value("holdfast_cache_bytes") or 0) > 0
    assert board.value("holdfast_sequences") == 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (RequestError("x"), "refused"),
        (RunError("x"), "failed"),
        (LateError("x"), "late"),
        (CallLost("x"), "lost"),
        (BusyError("x", "y"), "busy"),
    ],
)
async def test_an_outcome_is_told_by_its_error(error: Exception | None, outcome: str) -> None:
    figures = Figures()
    parts = {"size_bytes": 0, "klass": Class.BATCH, "now_s": 0.0, "timeout_s": 1.0}
    call, given_up = (Work("m", msgspec.Raw(b"\xc0"), [], **parts) for _ in range(2))  # type: ignore
    if error:
        call.fail(error)
    else:
        call.answer(None)  # type: ignore
    given_up.done.cancel()
    for one in (call, given_up):
        figures.ended(one, one.done)
    assert figures.models["m"].outcomes == {outcome: 1, "withdrawn": 1}


def test_times_are_histograms(board: Board) -> None:
    assert board.ask("eager", "x", [1.0] * 64) == 200
    for name in ("queue_seconds", "compute_seconds", "batch_calls"):
        count = board.value(f"holdfast_model_{name}_count", model="eager")
        assert count == 1
        last = board.value(f"holdfast_model_{name}_bucket", model="eager", le="+Inf")
        assert last == count
    assert board.value("holdfast_model_batch_calls_bucket", model="eager", le="1.0") == 1
    assert board.value("holdfast_model_batch_calls_sum", model="eager") == 1
    assert 0 < (board.value("holdfast_model_compute_seconds_sum", model="eager") or 0) < 60


def test_domains_and_versions_are_described(board: Board) -> None:
    some = {"domain": "some"}
    assert board.value("holdfast_domain_ready", **some) == 1
    assert board.value("holdfast_domain_quarantined", **some) == 0
    assert board.value("holdfast_domain_waiting", **some) == 0
    for state, number in (("serving", 1), ("spare", 1), ("starting", 0)):
        assert board.value("holdfast_domain_instances", **some, state=state) == number
    info = {"version": "1", "ep": "CPUExecutionProvider"}
    assert board.value("holdfast_model_info", **KEYS, **info) == 1
    assert (board.value("holdfast_model_load_seconds", **KEYS) or 0) > 0
    for state, number in (("closed", 1), ("open", 0), ("half-open", 0)):
        assert board.value("holdfast_model_breaker_state", **KEYS, state=state) == number
    assert board.value("holdfast_domain_gpu_seconds_total", **some) == 0


def test_a_restart_is_counted(board: Board) -> None:
    before = board.value("holdfast_domain_restarts_total", domain="some")
    assert before is not None
    os.kill(board.status()["domains"]["some"]["pid"], signal.SIGKILL)
    restarts = "holdfast_domain_restarts_total"
    until(lambda: board.value(restarts, domain="some") == before + 1, "it was counted")
    spare = {"domain": "some", "state": "spare"}
    until(lambda: board.value("holdfast_domain_instances", **spare) == 1, "a spare again")


def test_the_lines_do_not_grow_with_what_callers_say(board: Board) -> None:
    def lines() -> int:
        return len(board.text().splitlines())

    board.ask("tiny", "x", [0.0] * 64)
    board.ask("nobody", "x", [0.0])
    lines()  # the first scrape is there for the second
    before = lines()
    for i in range(20):
        assert board.ask(f"nobody's {i}".replace(" ", "%20"), "x", [0.0]) == 404
    assert lines() <= before


def documented(file: str) -> dict[str, set[str]]:
    """The metrics in the table of a page, with their labels."""
    table = (Path(__file__).parents[2] / file).read_text().partition("## Metrics")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    named = {name.strip(" `"): labels for names, labels in rows for name in names.split(",")}
    return {n: {one.strip() for one in labels.split(",")} - {""} for n, labels in named.items()}


def labels(board: Board, own: tuple[str, ...]) -> dict[str, set[str]]:
    """The metrics that an agent shows, with their labels."""
    shown = {}
    for family in text_string_to_metric_families(board.text()):
        if family.name.startswith(own):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            shown[name] = {key for one in family.samples for key in one.labels} - {"le"}
    return shown


def test_the_documentation_names_every_metric_with_its_labels(board: Board) -> None:
    board.ask("tiny", "x", [0.0] * 64)
    own = ("holdfast_domain_", "holdfast_model_", "holdfast_cache_", "holdfast_sequences")
    assert documented("docs/models.md") == labels(board, own)


def test_the_documentation_names_every_metric_of_doors_jobs_and_process(board: Board) -> None:
    named = documented("docs/health.md")
    own = ("holdfast_http_", "holdfast_jobs", "holdfast_build_", "holdfast_watchdog_", "process_")
    starts = ("holdfast_starts", "holdfast_resets_", "holdfast_safe_", "holdfast_hardware_")
    orders = ("holdfast_commands_", "holdfast_config_", "holdfast_twin_")
    shown = labels(board, (*own, "holdfast_part_", *starts, *orders))
    assert shown
    assert named == shown


def test_prometheus_finds_nothing_to_mend(board: Board) -> None:
    board.ask("tiny", "x", [0.0] * 64)
    command = [program("promtool", "prometheus"), "check", "metrics"]
    said = subprocess.run(command, input=board.text(), capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@pytest.mark.skipif("CUDAExecutionProvider" in get_available_providers(), reason="it has CUDA")
def test_a_model_on_another_device_than_was_asked_for_is_a_condition(board: Board) -> None:
    (held,) = board.fallbacks()
    assert held["subject"] == "gpu/eager"
    assert held["severity"] == "warning"
    assert "runs on CPUExecutionProvider" in held["cause"]
    assert "has no CUDAExecutionProvider" in held["cause"]
    assert "domains.gpu.devices" in held["remedy"]
    board.domains["gpu"]["devices"] = ["cpu"]
    board.configure()
    Checked(board.socket, 60.0).post("/api/v1/domains/apply", {})
    until(lambda: not board.fallbacks(), "nothing else is asked for")
    board.domains["gpu"]["devices"] = ["cuda", "cpu"]
    board.configure()
    Checked(board.socket, 60.0).post("/api/v1/domains/apply", {})
    until(board.fallbacks, "it is asked for again")
    del board.domains["gpu"]
    board.configure()
    Checked(board.socket, 60.0).post("/api/v1/domains/apply", {})
    until(lambda: not board.fallbacks(), "the domain is gone")
