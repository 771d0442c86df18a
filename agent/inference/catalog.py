"""The models on disk, each checked against its digest before anything runs it.

A model lies in `<models>/<name>/<version>/` with a `model.yaml` beside its file. Versions are whole
numbers; the highest one counts.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from agent.errors import ModelError


class Manifest(Struct, frozen=True):
    """What `model.yaml` must say; other keys (licence, origin) are for people."""

    name: str
    version: int
    engine: str
    file: str
    sha256: str
    size_bytes: int
    rate_hz: int
    hop_samples: int
    window_samples: int


class Model(Struct, frozen=True):
    """A verified model: its file holds what its manifest says."""

    manifest: Manifest
    path: Path

    @property
    def label(self) -> str:
        """Name, version and the digest's first digits, as results are stamped with."""
        return f"{self.manifest.name}/{self.manifest.version}@{self.manifest.sha256[:12]}"

    @property
    def options(self) -> dict[str, Any]:
        """What the engine is built with."""
        return {
            "model": str(self.path),
            "hop_samples": self.manifest.hop_samples,
            "window_samples": self.manifest.window_samples,
        }


class Catalog:
    """The model repository below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def newest(self, name: str) -> Model:
        """The highest version of `name`, verified. Raises ModelError."""
        folder = self._root / name
        versions = [int(f.name) for f in folder.glob("*/") if f.name.isdigit()]
        if not versions:
            raise ModelError(
                f"{folder}: no version of model {name!r} there",
                "models lie in <models_path>/<name>/<version>/; check models_path",
            )
        return self._verified(folder / str(max(versions)), name)

    def _verified(self, folder: Path, name: str) -> Model:
        manifest_path = folder / "model.yaml"
        try:
            manifest = msgspec.convert(yaml.safe_load(manifest_path.read_bytes()), Manifest)
            path = folder / manifest.file
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
            raise ModelError(f"{manifest_path}: {error}", "install the model again") from error
        if manifest.name != name or str(manifest.version) != folder.name:
            raise ModelError(
                f"{manifest_path}: says {manifest.name}/{manifest.version}, lies in {folder}",
                "move it to the folder of its own name and version",
            )
        if digest != manifest.sha256:
            raise ModelError(
                f"{path}: sha256 is {digest[:12]}…, model.yaml says {manifest.sha256[:12]}…",
                "the file is damaged or was changed: install the model again",
            )
        return Model(manifest, path)
