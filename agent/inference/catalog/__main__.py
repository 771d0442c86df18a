"""What `holdfast models ls|verify|sign` do: without an agent, and in a process of their own.

`python -P -m agent.inference.catalog COMMAND …` prints one JSON document, which the command line
shows. A stranger's model is read here and nowhere else.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import ConfigError, ModelError
from agent.inference.catalog import onnx_file, operators, signature
from agent.inference.catalog.catalog import Catalog
from agent.inference.catalog.golden import golden
from agent.inference.catalog.manifest import MANIFEST, MANIFEST_BYTES_MAX, Model
from agent.inference.catalog.place import read
from agent.protocol import signing

Document = dict[str, Any]


def ls(catalog: Catalog) -> Document:
    """Every version and what it says of itself; nothing is checked.

    The `version` of a model whose folder cannot be read is null.
    """
    rows: list[Document] = []
    for name in catalog.names():
        try:
            rows += [_declared(catalog, name, version) for version in catalog.versions(name)]
        except ModelError as error:
            rows.append({"name": name, "version": None} | _said(error))
    return {"models": rows}


def _declared(catalog: Catalog, name: str, version: int) -> Document:
    row: Document = {"name": name, "version": version}
    try:
        model = catalog.declared(name, version)
    except ModelError as error:
        return row | _said(error)
    manifest = model.manifest
    return row | {
        "engine": manifest.engine,
        "sha256": model.sha256,
        "size_bytes": manifest.size_bytes + sum(one.size_bytes for one in manifest.external),
        "golden": len(manifest.golden),
        "signature": manifest.signature,
        "warnings": list(model.warnings),
        "folder": str(model.folder),
    }


def verify(catalog: Catalog, which: str, eps: list[str]) -> Document:
    """Every version that is meant, checked as before it is loaded. Raises ModelError."""
    name, _, version = which.partition("/")
    if version and not version.isdecimal():
        raise ModelError(f"{which!r} is no version of a model", "write NAME or NAME/VERSION")
    if name:
        versions = [int(version)] if version else catalog.versions(name)
        found = [_verdict(catalog, name, one, eps) for one in versions]
    else:
        found = [row for one in catalog.names() for row in _verdicts(catalog, one, eps)]
    if name and not found:
        catalog.newest(name)  # raises, and says where it looked
    refused = sum(one["verdict"] != "good" for one in found)
    return {"models": found, "good": len(found) - refused, "refused": refused}


def _verdicts(catalog: Catalog, name: str, eps: list[str]) -> list[Document]:
    """Of all versions of a model; of none where they cannot be seen."""
    try:
        versions = catalog.versions(name)
    except ModelError as error:
        return [{"name": name, "version": None, "eps": {}, "verdict": "refused"} | _said(error)]
    return [_verdict(catalog, name, version, eps) for version in versions]


def _verdict(catalog: Catalog, name: str, version: int, eps: list[str]) -> Document:
    found: Document = {"name": name, "version": version, "eps": {}}
    try:
        model = catalog.verified(name, version)
        found |= _shown(model)
        golden(model)
    except ModelError as error:
        return found | {"verdict": "refused"} | _said(error)
    onnx = onnx_file.read(model.path)
    for ep in eps:
        try:
            operators.check(onnx, ep)
            found["eps"][ep] = {"verdict": "good"}
        except ModelError as error:
            found["eps"][ep] = {"verdict": "refused"} | _said(error)
    good = all(one["verdict"] == "good" for one in found["eps"].values())
    return found | {
        "verdict": "good" if good else "refused",
        "operators": len(onnx.operators),
        "opsets": {domain or "ai.onnx": opset for domain, opset in onnx.opsets.items()},
    }


def _said(error: ModelError) -> Document:
    return {"error": str(error), "hint": error.hint}


def _shown(model: Model) -> Document:
    manifest = msgspec.to_builtins(model.manifest)
    keys = ("engine", "size_bytes", "inputs", "outputs", "batching", "state")
    return {key: manifest[key] for key in keys} | {
        "sha256": model.sha256,
        "golden": len(model.manifest.golden),
        "signer": model.signer,
        "warnings": list(model.warnings),
    }


def sign(folder: Path, key_file: Path) -> Document:
    """Vouch for a version, whose folder this is. Raises ModelError, ConfigError."""
    folder = folder.resolve()
    if not folder.name.isdecimal():
        raise ModelError(f"{folder}: is not the folder of a version", "name models/NAME/VERSION")
    catalog = Catalog(folder.parent.parent)
    name, version = folder.parent.name, int(folder.name)
    manifest_path = folder / MANIFEST
    model = catalog.verified(name, version)
    content = read(manifest_path, MANIFEST_BYTES_MAX)
    key = signing.Key.kept(key_file)
    if model.manifest.signature is None:
        content = content.rstrip() + f"\nsignature: {signature.SIGNATURE}\n".encode()
        _write(manifest_path, content)
        model = catalog.verified(name, version)
    name_of_file = model.manifest.signature or signature.SIGNATURE
    taken = {"..", MANIFEST, model.manifest.file}
    if Path(name_of_file).name != name_of_file or name_of_file in taken:
        raise ModelError(
            f"{manifest_path}: signature: {name_of_file!r} is no name of a file beside it",
            f"write signature: {signature.SIGNATURE}",
        )
    digest = signature.digest(model.manifest, hashlib.sha256(content).hexdigest())
    path = folder / name_of_file
    _write(path, signature.line(key, digest))
    Catalog(folder.parent.parent, [key.public]).verified(name, version)
    return {"name": name, "version": version, "key": key.public, "file": str(path)}


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises ModelError."""
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:  # never through a link that lies there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be written: {error.strerror or error}", "let this user write there"
        ) from error


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent.inference.catalog")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("ls", "verify"):
        one = commands.add_parser(name)
        one.add_argument("root", type=Path)
        one.add_argument("--signed-by", action="append", default=[])
    one.add_argument("which", nargs="?", default="")
    one.add_argument("--ep", action="append", choices=operators.EPS)
    one = commands.add_parser("sign")
    one.add_argument("folder", type=Path)
    one.add_argument("--key", type=Path, required=True)
    return parser


def main() -> int:
    """Run one command; the exit code."""
    asked = _options().parse_args()
    try:
        if asked.command == "sign":
            document = sign(asked.folder, asked.key)
        elif asked.command == "ls":
            document = ls(Catalog(asked.root, asked.signed_by))
        else:
            catalog = Catalog(asked.root, asked.signed_by)
            document = verify(catalog, asked.which, asked.ep or ["cpu"])
    except (ModelError, ConfigError) as error:
        return error.told()
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    return ModelError.exit_code if document.get("refused") else 0


if __name__ == "__main__":
    sys.exit(main())
