"""`runner.py MODEL.onnx PORT WORKERS`: the model at POST /v2/models/NAME/infer, binary bodies.

PyTriton's bundled Triton with its dynamic batcher; each worker is an instance of the model (a list
of `infer_func`). No gRPC, no metrics.
"""

import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

BATCH_MAX = 8
LIBRARIES = "LD_LIBRARY_PATH"


class Model:
    """One session."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @batch
    def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """What Triton calls."""
        return {"y": self.session.run(["y"], {"x": x})[0]}


def main() -> None:
    path, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    models = [Model(path) for _ in range(workers)]
    x, y = models[0].session.get_inputs()[0], models[0].session.get_outputs()[0]
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=Path(path).parent.parent.name,
            infer_func=models,
            inputs=[Tensor(name="x", dtype=np.float32, shape=tuple(x.shape[1:]))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=tuple(y.shape[1:]))],
            config=ModelConfig(max_batch_size=BATCH_MAX, batcher=DynamicBatcher()),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    # Triton's own Python is another libpython3.11 where the system has one: not that of this
    # standard library, on which it would stumble.
    if LIBRARIES not in os.environ:
        os.environ[LIBRARIES] = sysconfig.get_config_var("LIBDIR")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
