"""`runner.py MODEL.onnx PORT WORKERS`: the model at POST /infer, tensor bytes in and out.

LitServe as it is fastest here: raw bodies (an annotated `Body`; no form, no JSON), `fast_queue`
(ZeroMQ for the answers), batches of what waits, no access log, one thread for each session.
"""

import sys
from typing import Annotated

import litserve
import numpy as np
import onnxruntime as ort
from fastapi import Body, Response

BATCH_MAX = 8
OCTETS = "application/octet-stream"


class Model(litserve.LitAPI):
    """One session for each worker."""

    def setup(self, device: str) -> None:
        """In the worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(
            sys.argv[1], options, providers=["CPUExecutionProvider"]
        )
        axes = self.session.get_inputs()[0].shape
        self.shape = axes[1:]  # LitServe makes the batch

    def decode_request(self, request: Annotated[bytes, Body(media_type=OCTETS)]) -> np.ndarray:
        """A view of the body."""
        return np.frombuffer(request, np.float32).reshape(self.shape)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The call."""
        return self.session.run(["y"], {"x": x})[0]

    def encode_response(self, output: np.ndarray) -> Response:
        """The bytes as they are."""
        return Response(output.tobytes(), media_type=OCTETS)


def main() -> None:
    port, workers = int(sys.argv[2]), int(sys.argv[3])
    server = litserve.LitServer(
        Model(api_path="/infer", max_batch_size=BATCH_MAX, batch_timeout=0.0),
        accelerator="cpu",
        workers_per_device=workers,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=port,
        generate_client_file=False,
        log_level="error",
        access_log=False,
        num_api_servers=1,
    )


if __name__ == "__main__":
    main()
