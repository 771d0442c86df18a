"""What isolation is measured against: the same session, called without any.

`python -m bench.reference serve FOLDER PORT`      an HTTP server that runs the models in-process
`python -m bench.reference raw FILE INPUTS OUTPUTS`  no server: a session in a loop

`serve` is aiohttp under uvloop, as one would write it with care: the Open Inference Protocol with
its binary extension, the head decoded by msgspec into types, the tensor a view of the body, the
session called in the handler. `raw` reads a file of inputs, writes the answers to them, and then
runs for as many seconds as each line of stdin says, and prints its inferences per second.

Both use one intra-op thread.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import uvloop
from aiohttp import web
from msgspec import Struct

BODY_BYTES_MAX = 16 * 1024**2
HEAD_LENGTH = "Inference-Header-Content-Length"


class Tensor(Struct):
    """The head of an input."""

    name: str
    shape: list[int]
    datatype: str


class Head(Struct):
    """What is read of a request's head."""

    inputs: list[Tensor]


HEAD = msgspec.json.Decoder(Head)
ENCODER = msgspec.json.Encoder()


def session(path: Path) -> Any:
    """ONNX Runtime's session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Models:
    """All models of a repository, in this process."""

    def __init__(self, root: Path) -> None:
        files = root.glob("*/1/model.onnx")
        self._sessions = {path.parent.parent.name: session(path) for path in files}

    async def infer(self, request: web.Request) -> web.Response:
        """The route."""
        name = request.match_info["model"]
        body = await request.read()
        head_bytes = int(request.headers[HEAD_LENGTH])
        tensor = HEAD.decode(memoryview(body)[:head_bytes]).inputs[0]
        values = np.frombuffer(body, np.float32, offset=head_bytes).reshape(tensor.shape)
        (result,) = self._sessions[name].run(["y"], {tensor.name: values})
        said = {"name": "y", "datatype": "FP32", "shape": result.shape}
        output = said | {"parameters": {"binary_data_size": result.nbytes}}
        head = ENCODER.encode({"model_name": name, "model_version": "1", "outputs": [output]})
        return web.Response(
            body=head + result.tobytes(),
            content_type="application/octet-stream",
            headers={HEAD_LENGTH: str(len(head))},
        )


def serve(root: Path, port: int) -> None:
    """Until it is ended."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.add_routes([web.post("/v2/models/{model}/infer", Models(root).infer)])
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, loop=loop, access_log=None, print=None)


def raw(path: Path, inputs: Path, outputs: Path) -> None:
    """Until stdin ends."""
    model = session(path)
    shape = [axis if isinstance(axis, int) else 1 for axis in model.get_inputs()[0].shape]
    batches = np.fromfile(inputs, np.float32).reshape(-1, *shape)
    np.concatenate([model.run(["y"], {"x": batch})[0] for batch in batches]).tofile(outputs)
    print("ready", flush=True)
    for line in sys.stdin:
        count, began_s = 0, time.perf_counter()
        until_s = began_s + float(line)
        for batch in itertools.cycle(batches):
            model.run(["y"], {"x": batch})
            count += 1
            if (now_s := time.perf_counter()) >= until_s:
                break
        print(count / (now_s - began_s), flush=True)


def main() -> None:
    match sys.argv[1:]:
        case ["serve", root, port]:
            serve(Path(root), int(port))
        case ["raw", path, inputs, outputs]:
            raw(Path(path), Path(inputs), Path(outputs))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
