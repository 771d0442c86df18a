"""The house's rules: who imports whom, and what the parent must never load."""

import subprocess
import sys

from tests.outside import ROOT


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_imports_run_downward_only() -> None:
    lint = f"{sys.prefix}/bin/lint-imports"
    done = run(lint, "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def loaded_by(module: str) -> set[str]:
    done = run(sys.executable, "-c", f"import sys, {module}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_parent_never_loads_onnxruntime() -> None:
    modules = loaded_by("agent.app")
    assert "agent.inference.domains.domain" in modules
    assert not {m for m in modules if m.startswith(("onnxruntime", "amqtt", "torch"))}


def test_an_agent_loads_what_few_need_only_when_it_is_needed() -> None:
    assert not loaded_by("agent.app") & {
        *("cryptography", "prometheus_client", "agent.api.form.openapi"),
        *("agent.sync.plant.line", "agent.sync.sparkplug.node", "agent.sync.home_assistant.device"),
    }


def test_an_agent_reads_no_authorities_as_it_starts_and_finds_them_later() -> None:
    counted = "context.get_ca_certs() != []"
    there = f"import ssl; context = ssl.create_default_context(); print({counted})"
    made = "import aiohttp.connector; context = aiohttp.connector._SSL_CONTEXT_VERIFIED"
    done = run(sys.executable, "-c", f"import agent.cli.run; {made}; print({counted}); {there}")
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_agent_loads_nothing_of_the_command_line() -> None:
    assert not loaded_by("agent.cli.run") & {"typer", "click", "rich", "pydantic"}


def test_a_worker_loads_nothing_of_the_agent_but_its_own() -> None:
    modules = loaded_by(
        "agent.inference.worker, agent.inference.engines.hearing, agent.inference.engines.onnx"
    )
    assert "onnxruntime" in modules
    assert "asyncio" not in modules
    ours = {m for m in modules if m.startswith("agent.")}
    assert ours == {
        "agent.child",
        "agent.errors",
        "agent.inference",
        "agent.inference.arena",
        "agent.inference.engines",
        "agent.inference.engines.devices",
        "agent.inference.engines.telling",
        "agent.inference.engines.hearing",
        "agent.inference.engines.onnx",
        "agent.inference.engines.runs",
        "agent.inference.engines.session",
        "agent.inference.engines.speech",
        "agent.inference.engines.tensors",
        "agent.inference.wire",
        "agent.inference.worker",
    }


def test_the_command_loads_no_part_of_the_agent() -> None:
    modules = loaded_by(
        "agent.cli.command, agent.cli.status, agent.cli.client, agent.cli.outbox,"
        "agent.cli.outbox_view, agent.cli.bundle, agent.cli.bundle_view, agent.cli.stick,"
        "agent.cli.models, agent.cli.models_view, agent.cli.domains, agent.cli.domains_view,"
        "agent.cli.audio"
    )
    heavy = ("numpy", "aiohttp", "paho", "soundfile", "agent.store", "agent.app", "agent.api")
    assert not {m for m in modules if m.startswith(heavy)}


def test_a_command_reads_none_of_the_others() -> None:
    modules = loaded_by("agent.cli.command")
    assert {m for m in modules if m.startswith("agent.cli.")} == {
        *("agent.cli.command", "agent.cli.options")
    }
    assert not modules & {"asyncio", "pydantic", "http.client", "rich.console", "yaml"}
    assert "asyncio" not in loaded_by("agent.cli.client, agent.cli.status, agent.cli.domains_view")


def test_reading_a_store_without_an_agent_loads_the_store_alone() -> None:
    modules = loaded_by("agent.cli.offline")
    heavy = ("numpy", "aiohttp", "paho", "soundfile", "agent.app", "agent.api", "agent.audio")
    assert not {m for m in modules if m.startswith(heavy)}
