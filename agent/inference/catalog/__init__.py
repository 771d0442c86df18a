"""The models on disk, each checked before anything runs it: digests, signature, form, operators.

catalog.py    the repository: which models and versions there are, and whether one is whole
manifest.py   model.yaml; or Triton's config.pbtxt in its place: triton.py, read by pbtxt.py
place.py      files by their names, none outside of its folder
onnx_file.py  what an .onnx holds, without ONNX Runtime; read by protobuf.py
form.py       whether the file and its manifest say the same
operators.py  whether an execution provider can run it
golden.py     inputs whose outputs are known
signature.py  who vouches for a version
quantize.py   a new version with INT8 weights, measured by cases.py
__main__.py   the commands without an agent
"""

from agent.inference.catalog.catalog import Catalog
from agent.inference.catalog.golden import Golden, golden
from agent.inference.catalog.manifest import Manifest, Model, TensorSpec, Wishes

__all__ = ["Catalog", "Golden", "Manifest", "Model", "TensorSpec", "Wishes", "golden"]
