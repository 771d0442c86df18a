"""The model repository below one folder: `<models>/<name>/<version>/`, as Triton lays it out.

Limits  : a version is a whole number; the highest one counts, however many there are.
Format  : a version's folder holds a model.yaml and the files that it names. Without a model.yaml
          Triton's config.pbtxt counts, in that folder or in the one above. Nothing that counts
          lies outside of the folder, links followed.
Recovery: copy a version beside its place and rename it. A folder that is being copied into does not
          run: its digests do not hold. One without a manifest and without an .onnx is no version
          yet, and `newest` goes past it; one with either of them is, and stands or falls by it.
"""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agent.errors import ModelError
from agent.inference.catalog import form, onnx_file, operators, place, signature, triton
from agent.inference.catalog.manifest import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    NAME,
    VERSION,
    External,
    Manifest,
    Model,
    parse,
)
from agent.inference.catalog.pbtxt import TEXT_BYTES_MAX
from agent.inference.wire import File, stamp


class Catalog:
    """What is installed. It keeps nothing in memory: each answer is what lies on the disk now."""

    def __init__(self, root: Path, signed_by: Sequence[str] = ()) -> None:
        """`signed_by`: public keys, one of which must have signed a version; none: no signature.

        Raises ConfigError for what is no key.
        """
        self._root = root
        self._keys = signature.trusted(signed_by)

    def names(self) -> list[str]:
        """The models of which there is a version. Raises ModelError when the folder is not there.

        Damaged ones are among them, and those of which nobody can see what there is.
        """
        try:
            folders = sorted(self._root.iterdir())
        except OSError as error:
            raise ModelError(
                f"{self._root}: cannot be read: {error.strerror or error}", _PLACE
            ) from error
        return [f.name for f in folders if NAME.fullmatch(f.name) and self._any(f.name)]

    def versions(self, name: str) -> list[int]:
        """The versions of a model, ascending, damaged ones too; [] for one that is not there."""
        folder = self._folder(name)
        try:
            found = [f.name for f in folder.iterdir() if f.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            if error.errno == errno.ELOOP:  # links in a circle lead to no folder
                return []
            raise ModelError(
                f"{folder}: cannot be read: {error.strerror or error}", "let this user read it"
            ) from error
        return sorted(int(version) for version in found if VERSION.fullmatch(version))

    def newest(self, name: str) -> Model:
        """The highest version of `name`, verified. Raises ModelError."""
        for version in self.claimed(name):
            return self.verified(name, version)
        raise ModelError(
            f"{self._folder(name)}: no version of model {name!r} there",
            f"models lie in <models>/<name>/<version>/; {_PLACE}",
        )

    def claimed(self, name: str) -> Iterator[int]:
        """The versions that say that they may serve, the newest first; no more is checked."""
        return (v for v in reversed(self.versions(name)) if self._claims(name, v))

    def verified(self, name: str, version: int | None = None) -> Model:
        """A version whose files are what its manifest, and who signed it, say. Reads all of it.

        None: the newest. Raises ModelError: where, what is wrong, what was expected.
        """
        if version is None:
            return self.newest(name)
        model, manifest_sha256 = self._read(name, version)
        model = msgspec.structs.replace(model, files=tuple(_stamped(model)))
        if manifest_sha256 is not None:  # else its digests were made of the files a moment ago
            _files(model)
        if not self._keys:
            return _formed(model)
        if manifest_sha256 is None:
            raise ModelError(
                f"{model.folder}: {triton.CONFIG} cannot be signed, and models.signed_by asks for "
                "a signature",
                f"write a {MANIFEST} and sign it: holdfast models sign {model.folder} --key FILE",
            )
        signed = signature.digest(model.manifest, manifest_sha256)
        signer = signature.check(model.folder, model.manifest, signed, self._keys)
        return msgspec.structs.replace(_formed(model), signer=signer)

    def declared(self, name: str, version: int) -> Model:
        """What a version says of itself; nothing of it is checked. Raises ModelError."""
        return self._read(name, version)[0]

    def check(self, model: Model, ep: str) -> None:
        """Whether an execution provider has all operators of a model. Raises ModelError."""
        operators.check(onnx_file.read(model.path), ep)

    def _any(self, name: str) -> bool:
        try:
            return bool(self.versions(name))
        except ModelError:  # told to whoever asks for them; it must not hide the other models
            return True

    def _folder(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ModelError(
                f"{name[:80]!r} is no name of a model",
                "a name is letters, digits, -, _ and ., as its folder is called",
            )
        return self._root / name

    def _version(self, name: str, version: int) -> Path:
        """The folder itself, links followed."""
        given = self._folder(name) / str(version)
        try:
            root, folder = self._root.resolve(), given.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            known = ", ".join(map(str, self.versions(name)))
            raise ModelError(
                f"{given}: there is no version {version} of model {name!r}",
                f"ask for one of {known}"
                if known
                else f"models lie in <models>/<name>/<version>/; {_PLACE}",
            ) from error
        if not folder.is_relative_to(root) or not folder.is_dir():
            raise ModelError(
                f"{given}: leads out of the models' folder, to {folder}",
                "put the version's folder itself there instead of a link",
            )
        return folder

    def _claims(self, name: str, version: int) -> bool:
        """Whether anything there says that it is a version, and may serve.

        What cannot be read does: it is no reason to be silent on the others, and falls by itself.
        """
        try:
            return self._says_so(name, self._version(name, version), version)
        except (ModelError, OSError):
            return True

    def _says_so(self, name: str, folder: Path, version: int) -> bool:
        if (folder / MANIFEST).exists():
            return True
        whole = any(folder.glob("*.onnx")) or (folder / triton.CONFIG).exists()
        config = _triton(self._folder(name), folder)
        if config is None or not whole:
            return whole
        asked = triton.read(*config, name).versions
        return asked is None or version in asked

    def _read(self, name: str, version: int) -> tuple[Model, str | None]:
        """What a version says of itself, and the digest of its model.yaml."""
        folder = self._version(name, version)
        path = folder / MANIFEST
        if not _there(path):
            config = _triton(folder.parent, folder)
            if config is None:
                raise ModelError(
                    f"{folder}: there is no {MANIFEST}, and no {triton.CONFIG} in its place",
                    "write one (docs/models.md has the form); if it had one, copy it again",
                )
            return _from_triton(*config, name, folder, version), None
        content = place.read(place.inside(folder, MANIFEST, "the manifest"), MANIFEST_BYTES_MAX)
        manifest = parse(content, path)
        if (manifest.name, manifest.version) != (name, version):
            raise ModelError(
                f"{path}: says {manifest.name}/{manifest.version}, lies in {folder}",
                "move it to the folder of its own name and version",
            )
        file = place.inside(folder, manifest.file, f"{MANIFEST}: file")
        model = Model(manifest, file, folder, manifest.sha256)
        return model, hashlib.sha256(content).hexdigest()


_PLACE = "check where the configuration says the models are"


def _stamped(model: Model) -> Iterator[File]:
    """The files that are loaded, as they are before they are read."""
    weights = [((model.folder / one.file).resolve(), one.sha256) for one in model.manifest.external]
    for path, sha256 in [(model.path, model.sha256), *weights]:
        with place.opened(path):  # or it is said why not
            yield File(str(path), sha256, stamp(path))


def _files(model: Model) -> None:
    """Each file that counts is there and what was declared."""
    manifest, folder = model.manifest, model.folder
    place.check(model.path, f"{MANIFEST}: file", model.sha256, manifest.size_bytes)
    for i, one in enumerate(manifest.external):
        what = f"{MANIFEST}: external[{i}]"
        place.check(place.inside(folder, one.file, what), what, one.sha256, one.size_bytes)
    for name, sha256, what in _golden(manifest):
        place.check(place.inside(folder, name, what), what, sha256)


def _golden(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    for i, pair in enumerate(manifest.golden):
        yield pair.inputs, pair.inputs_sha256, f"{MANIFEST}: golden[{i}].inputs"
        yield pair.outputs, pair.outputs_sha256, f"{MANIFEST}: golden[{i}].outputs"


def _formed(model: Model) -> Model:
    """The model file is ONNX, and says the same as the manifest."""
    onnx = onnx_file.read(model.path)
    external = _external(model.folder, model.path, onnx.external)
    declared = {(model.folder / one.file).resolve() for one in model.manifest.external}
    for path in external:
        if path not in declared:
            raise ModelError(
                f"{model.path}: its weights lie in {path.name}, which {MANIFEST} does not declare",
                f"add it to {MANIFEST}: external: [{{file, sha256, size_bytes}}]",
            )
    return msgspec.structs.replace(model, manifest=form.agreed(model.manifest, onnx))


def _external(folder: Path, file: Path, names: set[str]) -> list[Path]:
    """Where a model's external weights lie: below the model file, and in the version's folder."""
    paths = []
    for name in sorted(names):
        path = place.inside(file.parent, name, f"external data of {file.name}")
        if not path.is_relative_to(folder):
            raise ModelError(
                f"{file}: external data {name!r} leads out of {folder}", "export the model again"
            )
        paths.append(path)
    return paths


def _there(path: Path) -> bool:
    """Whether there is anything of this name. Raises ModelError where that cannot be seen."""
    try:
        return path.is_symlink() or path.exists()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror or error}", "let this user read it"
        ) from error


def _triton(above: Path, folder: Path) -> tuple[bytes, str] | None:
    """A version's config.pbtxt and its path: of its own, or the one for all versions."""
    for place_of in (folder, above):
        path = place_of / triton.CONFIG
        if _there(path):
            real = place.inside(place_of.resolve(), triton.CONFIG, "in place of model.yaml")
            return place.read(real, TEXT_BYTES_MAX), str(path)
    return None


def _from_triton(content: bytes, path: str, name: str, folder: Path, version: int) -> Model:
    """A manifest made of a config.pbtxt. Its digests are of what is there: of first use."""
    config = triton.read(content, path, name)
    if config.versions is not None and version not in config.versions:
        raise ModelError(
            f"{path}: version_policy: version {version} does not serve, "
            f"only {', '.join(map(str, config.versions))}",
            "ask for one of them, or take the policy out",
        )
    file = place.inside(folder, config.file, f"by {path}")
    external = [
        External(str(one.relative_to(folder)), *place.digest(one))
        for one in _external(folder, file, onnx_file.read(file).external)
    ]
    sha256, size_bytes = place.digest(file)
    manifest = Manifest(
        name,
        version,
        config.file,
        sha256,
        size_bytes,
        external=external,
        inputs=config.inputs,
        outputs=config.outputs,
        batching=config.batching,
        deterministic=config.deterministic,
        state=config.state,
        warm_up=3 if config.warm_up is None else min(config.warm_up, 10_000),
    )
    found = f"no digest is declared in {path}: the file is trusted as it was found"
    warnings = (found, *config.warnings)
    return Model(manifest, file, folder, sha256, wishes=config.wishes, warnings=warnings)
