"""`runner.py MODEL.onnx PORT WORKERS`: the model at POST /infer, tensor bytes in and out.

BentoML with its production server. A lone `bytes` argument is the raw body; the handler is async,
so that no thread is woken for it. No metrics, no traces, no access log.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime as ort
from bentoml.validators import ContentType

MODEL, WORKERS = "BENCH_MODEL", "BENCH_WORKERS"
OCTETS = "application/octet-stream"


@bentoml.service(
    workers=int(os.environ.get(WORKERS, "1")),
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    traffic={"timeout": 60},
)
class Served:
    """One session for each worker."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            os.environ[MODEL], options, providers=["CPUExecutionProvider"]
        )
        axes = self._session.get_inputs()[0].shape
        self._shape = [axis if isinstance(axis, int) else 1 for axis in axes]

    @bentoml.api(route="/infer")
    async def infer(self, body: bytes, /) -> Annotated[bytes, ContentType(OCTETS)]:
        """The route."""
        values = np.frombuffer(body, np.float32).reshape(self._shape)
        return self._session.run(["y"], {"x": values})[0].tobytes()


def main() -> None:
    path, port, workers = sys.argv[1:]
    os.environ |= {MODEL: path, WORKERS: workers, "BENTOML_DO_NOT_TRACK": "True"}
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "runner:Served",
        "--working-dir",
        str(here),
    ]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", port])


if __name__ == "__main__":
    main()
