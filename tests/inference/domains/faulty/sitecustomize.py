"""Read by Python at its start when its folder is on PYTHONPATH: models that ruin their worker.

A model's metadata has the key `fault`: `crash` or `hang` when it is loaded, `run N`: it crashes in
its N-th run, those of its warm-up and of its proof counted.
"""

import os
import signal
import sys
import time
from typing import Any

if "agent.inference.zygote" in sys.orig_argv:
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        """One that goes wrong."""

        def __init__(self, *words: Any, **more: Any) -> None:
            super().__init__(*words, **more)
            fault = self.get_modelmeta().custom_metadata_map.get("fault", "")
            self._left = int(fault.removeprefix("run ")) if fault.startswith("run ") else 1 << 60
            if fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            while fault == "hang":
                time.sleep(1)

        def run(self, *words: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGSEGV)
            return super().run(*words, **more)

    onnxruntime.InferenceSession = Session
