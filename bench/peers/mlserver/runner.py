"""`runner.py MODEL.onnx PORT WORKERS`: the model at POST /v2/models/NAME/infer, as JSON.

MLServer's HTTP side knows no binary bodies. It runs without its metrics' server, gzip and access
log. WORKERS 0: in the server's own process (`parallel_workers: 0`); 1 is its default, isolated.
"""

import asyncio
import sys
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):
    """One session for each worker."""

    async def load(self) -> bool:
        """In the worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The route."""
        values = NumpyCodec.decode_input(payload.inputs[0])
        (result,) = self._session.run(["y"], {"x": values})
        output = NumpyCodec.encode_output("y", result)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve(path: str, port: int, workers: int) -> None:
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_endpoint=None,
        parallel_workers=workers,
        gzip_enabled=False,
    )
    name = Path(path).parent.parent.name
    model = ModelSettings(name=name, implementation="runner.Model", parameters={"uri": path})
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
