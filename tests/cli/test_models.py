"""`holdfast models`, as a technician types it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.inference.catalog.repository import describe, install, linear, opsets, pair, single
from tests.inference.catalog.test_quantize import products
from tests.outside import HOLDFAST, ROOT, as_json


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with a good model, and the configuration that names it."""
    root = tmp_path / "models"
    folder = install(root, linear())
    x = np.ones((2, 4), np.float32)
    describe(folder, golden=[pair(folder, {"x": x}, {"y": 2 * x})])
    config = {
        "models": {"path": str(root)},
        "link": {"broker_url": "mqtt://127.0.0.1:1", "ack_from": "ingest"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def run(models: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOLDFAST_CONFIG": str(models.parent / "config.yaml"),
        "COLUMNS": "100",
    }
    return subprocess.run(
        [str(HOLDFAST), "models", *words],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment,
    )  # fmt: skip


def document(models: Path, *words: str) -> Any:
    return as_json(run(models, *words, "--json"))


def test_ls_shows_each_version_and_what_is_wrong_with_it(models: Path) -> None:
    install(models, linear(), version=2)
    (models / "m/2/model.yaml").write_text("name: m")
    done = run(models, "ls")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1].split()[:3] == ["m", "1", "onnx"]
    assert "1 golden pair" in lines[1]
    assert "newest, cannot be read, see below" in lines[2]
    assert "version: is missing" in " ".join(done.stdout.split())
    first, second = document(models, "ls")["models"]
    assert (first["version"], first["golden"], first["engine"]) == (1, 1, "onnx")
    assert "error" in second


def test_verify_says_what_a_good_model_takes_and_gives(models: Path) -> None:
    done = run(models, "verify", "m/1")
    assert done.returncode == 0, done.stderr
    assert "m/1  good" in done.stdout
    assert "x  FP32 [any, 4]" in done.stdout
    assert "cpu: has all its operators (opset 18)" in done.stdout
    assert done.stdout.endswith("1 version good\n")
    found = document(models, "verify", "--ep", "cuda", "--ep", "tensorrt")
    assert (found["good"], found["refused"]) == (1, 0)
    assert set(found["models"][0]["eps"]) == {"cuda", "tensorrt"}


def test_verify_names_what_is_wrong_and_ends_with_1(models: Path) -> None:
    install(models, single("Whirl", "com.acme", opsets(("com.acme", 1))), "odd")
    folder = install(models, linear(), "spoilt")
    (folder / "model.onnx").write_bytes(b"other")
    done = run(models, "verify")
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert "m/1 good" in text
    assert "odd/1 REFUSED" in text
    assert "cpu cannot run Whirl of com.acme, opset 1 (node 'only')" in text
    assert "spoilt/1 REFUSED" in text
    assert "has 5 bytes, expected" in text
    assert "try: the file is not whole or another one: install the model again" in text
    assert text.endswith("1 version good, 2 versions REFUSED")
    found = document(models, "verify")
    assert [one["verdict"] for one in found["models"]] == ["good", "refused", "refused"]


def test_what_is_not_there_is_said(models: Path) -> None:
    done = run(models, "verify", "nothing")
    assert done.returncode == 1
    assert "no version of model 'nothing' there" in done.stderr
    done = run(models, "verify", "m/7")
    assert done.returncode == 1
    assert "there is no version 7 of model 'm'" in " ".join(done.stdout.split())
    assert run(models, "verify", "--ep", "tpu").returncode == 2
    assert "is no version of a model" in run(models, "verify", "m/x").stderr
    assert "is no name of a model" in run(models, "verify", "--", "-x").stderr


def test_sign_then_verify_with_the_key(models: Path) -> None:
    key = models.parent / "key"
    done = run(models, "sign", str(models / "m/1"), "--key", str(key))
    assert done.returncode == 0, done.stderr
    assert "m/1 is signed" in done.stdout
    public = done.stdout.split()[-1]
    assert public.startswith("hf1pub:")
    assert document(models, "verify", "m", "--signed-by", public)["models"][0]["signer"] == public
    install(models, linear(), "other")
    done = run(models, "verify", "--signed-by", public)
    assert done.returncode == 1
    assert "models.signed_by asks for one" in " ".join(done.stdout.split())
    assert (
        "is not the folder of a version"
        in run(models, "sign", str(models), "--key", str(key)).stderr
    )


def test_verify_asks_for_the_signatures_that_the_configuration_asks_for(models: Path) -> None:
    key = models.parent / "key"
    public = as_json(run(models, "sign", str(models / "m/1"), "--key", str(key), "--json"))["key"]
    install(models, linear(), "other")
    config = models.parent / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["models"]["signed_by"] = [public]
    config.write_text(yaml.safe_dump(content))
    found = document(models, "verify")["models"]
    assert [(one["name"], one["verdict"]) for one in found] == [("m", "good"), ("other", "refused")]
    assert "models.signed_by asks for one" in found[1]["error"]


def test_a_version_without_a_manifest_is_told_where_its_form_stands(models: Path) -> None:
    folder = models / "bare/1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    done = run(models, "verify", "bare")
    assert done.returncode == 1
    assert "write one (docs/models.md has the form)" in " ".join(done.stdout.split())
    assert "`model.yaml`:" in (ROOT / "docs/models.md").read_text()


def test_quantize_says_how_far_it_is_off_and_how_fast(models: Path) -> None:
    install(models, products(), "wide")
    done = run(models, "quantize", "wide/1", "--to", "2", "--dynamic")
    assert done.returncode == 0, done.stderr
    assert "WARNING: random inputs" in done.stderr
    for said in ("wide/2@", "dynamic INT8", "speed", "error", "tolerance"):
        assert said in done.stdout
    assert document(models, "verify", "wide/2")["models"][0]["golden"] == 4
    done = run(models, "quantize", "wide/1", "--to", "2")
    assert done.returncode == 1
    assert "is there already" in done.stderr
