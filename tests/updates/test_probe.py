"""What a version is asked before it is switched to, by a program of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent import VERSION
from agent.errors import NotNow
from agent.store import schema
from agent.updates.slots import probe
from agent.updates.slots.probe import Answer, Probe
from tests.outside import ROOT

OWN = Answer("1.0", 14, 14)


def slot(folder: Path, script: str) -> Path:
    """One whose Python does this."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "python").chmod(0o755)
    return folder


def says(answer: str) -> str:
    """In pieces, as it comes from a program that is slow."""
    return f"echo a warning of somebody; sleep 0.05; echo '{answer}'"


async def test_this_very_version_answers_for_itself(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"link": {"ack_from": "broker"}}))
    known = Answer(VERSION, len(schema.steps()), schema.OPENS_FROM)
    real = slot(tmp_path / "real", f'exec {sys.executable} "$@"')
    assert await Probe(config, known).ask(real) == known
    config.write_text("store: {path: 7}\n")
    with pytest.raises(NotNow, match="status 78"):
        await Probe(config, known).ask(real)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "status 3"),
        ("echo 'SyntaxError: no'; exit 1", "SyntaxError"),
        ("kill -9 $$", "status -9"),
        ("echo nonsense", "cannot be read"),
        (says('{"version":"1.1","schema":16,"opens_from":15}'), "knows schema 14"),
        (says('{"version":"1.1","schema":13,"opens_from":12}'), "knows schema 13"),
    ],
)
async def test_what_does_not_answer_is_not_switched_to(
    tmp_path: Path, script: str, told: str
) -> None:
    with pytest.raises(NotNow, match=told):
        await Probe(tmp_path, OWN).ask(slot(tmp_path / "slot", script))


async def test_a_newer_schema_that_the_former_version_can_work_in_is_taken(tmp_path: Path) -> None:
    made = slot(tmp_path / "slot", says('{"version":"1.1","schema":19,"opens_from":14}'))
    assert (await Probe(tmp_path, OWN).ask(made)).schema == 19


async def test_one_without_an_interpreter_is_not_switched_to(tmp_path: Path) -> None:
    with pytest.raises(NotNow, match="No such file"):
        await Probe(tmp_path, OWN).ask(tmp_path / "absent")


async def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_S_MAX", 0.1)
    with pytest.raises(NotNow, match="does not end"):
        await Probe(tmp_path, OWN).ask(slot(tmp_path / "slot", "exec sleep 1000"))


def test_the_self_test_is_called_by_the_name_that_stays() -> None:
    """Of versions that are out there already: neither its name nor its words may change."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent.selftest", str(ROOT / "config" / "default.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    expected = f'{{"version":"{VERSION}","schema":{len(schema.steps())},"opens_from":'
    assert done.stdout.startswith(expected)


def test_a_version_whose_workers_cannot_begin_does_not_pass(tmp_path: Path) -> None:
    tmp_path.joinpath("onnxruntime.py").write_text("raise ImportError('built for another board')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent.selftest", str(ROOT / "config" / "default.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.returncode == 1
    assert "built for another board" in done.stderr
