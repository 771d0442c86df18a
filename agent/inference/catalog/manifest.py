"""What `model.yaml` says of a model version.

Limits  : 256 KiB; the version is a whole number from 1 to 999,999,999 and the folder's name.
Format  : YAML, the keys of `Manifest`; others (licence, attribution, …) are for people.
Recovery: it is written once with the files it names and never changed: a version is immutable.
"""

import difflib
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct, field

from agent.errors import ModelError
from agent.inference.wire import File

MANIFEST = "model.yaml"
MANIFEST_BYTES_MAX = 256 * 1024
VALUES_MAX = 200_000  # more than a text of that size can have without aliases
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
# PyYAML lets through what Python says of an impossible date, or of a list in itself.
STUMBLES = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)

SHA256_FORM = "64 digits 0-9 and a-f, as sha256sum prints them"
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description=SHA256_FORM)]
Count = Annotated[int, Meta(ge=1)]
Dtype = (
    Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
    | Literal["FP16", "FP32", "FP64", "BF16", "BYTES"]
)  # names of the Open Inference Protocol v2
Tolerated = Annotated[float, Meta(ge=0, le=1e6)]
Size = Annotated[int, Meta(ge=-1)]


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A model's input or output; a dimension of -1 is open."""

    name: str
    dtype: Dtype
    shape: Annotated[list[Size], Meta(max_length=32)]


class State(Struct, frozen=True, forbid_unknown_fields=True):
    """What one call of a stateful model hands to the next: an output that becomes an input."""

    input: str
    output: str


class Pair(Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs whose outputs are known: two npz files below the version's folder."""

    inputs: str
    outputs: str
    inputs_sha256: Sha256
    outputs_sha256: Sha256


class Tolerance(Struct, frozen=True, forbid_unknown_fields=True):
    """How far an output may be from the expected one: atol + rtol * |expected|."""

    rtol: Tolerated = 1e-3
    atol: Tolerated = 1e-4


class External(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of weights beside the model, which the model names."""

    file: str
    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=0)]


class Manifest(Struct, frozen=True):
    """A model version; after `Catalog.verified` inputs, outputs and batching are the file's own."""

    name: str
    version: Annotated[int, Meta(ge=1, le=999_999_999)]
    file: str
    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=1)]
    engine: Literal["onnx", "speech"] = "onnx"
    options: dict[str, Any] = field(default_factory=dict)  # the engine's own
    external: Annotated[list[External], Meta(max_length=10_000)] = []
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    batching: bool | None = None  # the first axis of all is a batch axis; None: see form.py
    deterministic: bool = False  # the same input always gives the same output: it may be cached
    cache_ttl_s: Annotated[float, Meta(ge=0)] = 300.0
    idempotent: bool = True  # may be run again after a crash
    finite: bool = False  # NaN and infinities in an output are an error at run time too
    state: list[State] = []
    fallback: str | None = None  # the model that answers when this one cannot
    warm_up: Annotated[int, Meta(ge=0, le=10_000)] = 3  # runs before it serves
    golden: Annotated[list[Pair], Meta(max_length=1000)] = []
    tolerance: Tolerance = Tolerance()
    latency_ms_max: Annotated[float, Meta(gt=0)] | None = None  # of the warm-up's median run
    signature: str | None = None


class Wishes(Struct, frozen=True):
    """What a Triton configuration asks of the domain that runs the model; None: nothing."""

    batch_max: int | None = None  # rows that may be put together
    batch_delay_ms_max: float | None = None
    instances: int | None = None
    devices: tuple[str, ...] | None = None
    threads: int | None = None
    queue_max: int | None = None
    request_timeout_s: float | None = None


class Model(Struct, frozen=True):
    """A verified model: its files are what its manifest says."""

    manifest: Manifest
    path: Path  # of the model file
    folder: Path  # of the version
    sha256: str  # of the model file
    signer: str | None = None  # the public key that vouches for it, where one must
    wishes: Wishes = Wishes()
    files: tuple[File, ...] = ()  # what is loaded, as it was verified
    warnings: tuple[str, ...] = ()  # what of a Triton configuration is not followed

    @property
    def label(self) -> str:
        """Name, version and the digest's first digits, as results are stamped with."""
        return f"{self.manifest.name}/{self.manifest.version}@{self.sha256[:12]}"

    @property
    def weights_sha256(self) -> str:
        """Of all that is loaded: the model file, and weights beside it."""
        parts = [self.sha256, *(one.sha256 for one in self.manifest.external)]
        return parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def options(self) -> dict[str, Any]:
        """What the engine is built with."""
        return {**self.manifest.options, "model": str(self.path)}


class _Loader(yaml.SafeLoader):
    """YAML whose aliases stay small: a kilobyte of them may mean gigabytes, or a circle."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._values = 0  # aliases followed
        self._sizes = dict[str, int]()  # of what has an anchor, once it is whole

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.AliasEvent)
        self._values += self._sizes.get(event.anchor, VALUES_MAX) if alias else 1
        if self._values > VALUES_MAX:
            raise yaml.MarkedYAMLError(
                problem=f"more than {VALUES_MAX:,} values with its aliases, or one within itself",
                problem_mark=event.start_mark,
            )
        node = super().compose_node(parent, index)
        if event.anchor and not alias:
            self._sizes[event.anchor] = self._values - before
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        text.encode()  # half a surrogate pair could neither be sent to a process nor be shown
        return text


def parse(content: bytes, path: Path) -> Manifest:
    """The manifest in a model.yaml. Raises ModelError: file, key, what was expected."""
    try:
        value = yaml.load(content, _Loader)
    except STUMBLES as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{path}: not YAML: {said}", "mend the syntax at that line") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected keys such as `name:` and `sha256:`", _FORM)
    _no_slips(path, [str(key) for key in value])
    try:
        # Not strict: YAML takes 1e-3 for a text, and people do not.
        manifest = msgspec.convert(value, Manifest, strict=False)
        if manifest.engine == "speech":
            msgspec.convert({"options": manifest.options}, _Speech)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {_explained(str(error))}", _FORM) from error
    try:
        msgspec.msgpack.encode(manifest.options)  # as a worker is told them
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: options: {error}", _FORM) from error
    return manifest


class _SpeechOptions(Struct, forbid_unknown_fields=True):
    rate_hz: Literal[16_000]  # records.RATE_HZ: all sound has this rate here
    hop_samples: Count
    window_samples: Count


class _Speech(Struct):
    options: _SpeechOptions


_FORM = "docs/models.md has the form, and every key"


def _no_slips(path: Path, keys: list[str]) -> None:
    """Other keys are for people, but one that is nearly one of ours was meant for us."""
    known = [f.encode_name for f in msgspec.structs.fields(Manifest)]
    for key in keys:
        near = [] if key in known else difflib.get_close_matches(key.lower(), known, 1, 0.8)
        if near:
            raise ModelError(f"{path}: {key}: unknown key", f"did you mean {near[0]}?")


def _explained(message: str) -> str:
    """msgspec's words, the key first."""
    what, _, where = message.partition(" - at `$")
    key = where.strip(".`")
    missing = re.search(r"missing required field `(.+)`", what)
    if missing:
        return f"{f'{key}.{missing[1]}'.lstrip('.')}: is missing"
    if "matching regex" in what:
        what = f"expected {SHA256_FORM}"
    return f"{key}: {what[0].lower()}{what[1:]}" if key else what
