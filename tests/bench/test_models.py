"""The models that measurements serve and tests break do what they say."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from onnx import TensorProto

from bench import models


def session(model: models.Model) -> Any:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_one_seed_makes_one_file_and_another_seed_another() -> None:
    first, again, other = models.tiny(), models.tiny(), models.tiny(seed=1)
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )
    assert first != other


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("make", "shape", "outputs"),
    [(models.tiny, (64,), 10), (models.cnn, (3, 224, 224), 1000)],
)
def test_a_batch_answers_as_its_rows_do(
    make: Any, shape: tuple[int, ...], outputs: int, batch: int
) -> None:
    rows = np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)
    model = session(make())
    (together,) = model.run(["y"], {"x": rows})
    assert together.shape == (batch, outputs)
    assert 0.1 < together.std() < 100  # not all the same, and not off to nowhere
    apart = np.concatenate([model.run(["y"], {"x": row[None]})[0] for row in rows])
    np.testing.assert_allclose(together, apart, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (TensorProto.FLOAT16, np.ones((2, 4), np.float16)),
        (TensorProto.INT64, np.arange(8).reshape(2, 4)),
        (TensorProto.BOOL, np.eye(2, 4, dtype=bool)),
        (TensorProto.STRING, np.array([["a", "", "ü", "d"]], object)),
    ],
)
def test_identity_returns_any_type(dtype: int, values: Any) -> None:
    (said,) = session(models.identity(dtype)).run(["y"], {"x": values})
    assert (said == values).all()


def test_the_special_ones() -> None:
    ones = np.ones((2, 4), np.float32)
    y, state = session(models.accumulator()).run(["y", "state_out"], {"x": ones, "state": ones})
    assert (y == 2).all() and (state == 2).all()
    (said,) = session(models.not_numbers()).run(["y"], {"x": -ones})
    assert np.isnan(said).all()


def test_a_loop_of_any_length_ends_when_it_is_told_to() -> None:
    loop, run, ended = session(models.loop()), ort.RunOptions(), threading.Event()
    assert np.isfinite(loop.run(["y"], {"turns": np.array([3])})[0])

    def tell() -> None:
        while not ended.wait(0.05):
            run.terminate = True

    teller = threading.Thread(target=tell)
    teller.start()
    with pytest.raises(Exception, match="terminate flag"):
        loop.run(["y"], {"turns": np.array([10**12])}, run)
    ended.set()
    teller.join()


def test_a_repository_names_the_digest_of_what_lies_in_it(tmp_path: Path) -> None:
    folder = models.write(tmp_path, "tiny", models.tiny(), version=3, finite=True)
    manifest = yaml.safe_load((folder / "model.yaml").read_text())
    content = (tmp_path / "tiny" / "3" / manifest["file"]).read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["size_bytes"], manifest["version"]) == (len(content), 3)
    assert manifest["finite"] is True


def test_the_form_of_triton_leaves_the_batch_axis_out(tmp_path: Path) -> None:
    folder = models.write_triton(tmp_path, "tiny", models.tiny())
    said = (folder.parent / "config.pbtxt").read_text()
    assert 'name: "x", data_type: TYPE_FP32, dims: [64]' in said
    assert 'name: "y", data_type: TYPE_FP32, dims: [10]' in said
    assert "max_batch_size: 8" in said
