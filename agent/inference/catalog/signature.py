"""Who vouches for a model version: an Ed25519 signature over all that counts of it.

Limits  : 64 KiB; one line for each who signed.
Format  : the public key (`hf1pub:` and 32 bytes in Base64), a blank, the signature in Base64. What
          is signed is the SHA-256 of: the line `holdfast model 1`, a line with the name, one with
          the version, then a line for each file, in the order of their names: its SHA-256 in hex,
          a blank, its name below the version's folder. The files are model.yaml, the model file,
          its external data and the golden files; not the signature itself.
Recovery: written whole beside its place and renamed; one that is damaged is no signature.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import ConfigError, ModelError, ProtocolError
from agent.inference.catalog import place
from agent.inference.catalog.manifest import MANIFEST, Manifest
from agent.protocol import signing

SIGNATURE = "model.sig"
SIGNATURE_BYTES_MAX = 64 * 1024


def trusted(signed_by: Sequence[str]) -> list[str]:
    """The keys of `models.signed_by`, each in its one form. Raises ConfigError."""
    found = []
    for i, text in enumerate(signed_by):
        whole = text if text.startswith(signing.PUBLIC) else signing.PUBLIC + text.strip()
        try:
            found.append(signing.public_key(whole))
        except ProtocolError as error:
            raise ConfigError(
                f"models.signed_by[{i}]: {error}", "copy it from `holdfast models sign`"
            ) from error
    return found


def digest(manifest: Manifest, manifest_sha256: str) -> bytes:
    """What is signed of a version whose files are what its manifest says."""
    digests = {MANIFEST: manifest_sha256, manifest.file: manifest.sha256}
    digests |= {one.file: one.sha256 for one in manifest.external}
    for pair in manifest.golden:
        digests |= {pair.inputs: pair.inputs_sha256, pair.outputs: pair.outputs_sha256}
    return hashlib.sha256(canonical(manifest.name, manifest.version, digests)).digest()


def canonical(name: str, version: int, digests: Mapping[str, str]) -> bytes:
    """The bytes themselves."""
    lines = [f"{digests[file]} {file}" for file in sorted(digests)]
    return "".join(f"{line}\n" for line in ["holdfast model 1", name, version, *lines]).encode()


def check(folder: Path, manifest: Manifest, signed: bytes, keys: Sequence[str]) -> str:
    """Which of the trusted keys vouches for the version. Raises ModelError if none does."""
    if manifest.signature is None:
        raise ModelError(
            f"{folder}: there is no signature, and models.signed_by asks for one",
            f"sign it where the key is: holdfast models sign {folder} --key FILE",
        )
    path = place.inside(folder, manifest.signature, f"{MANIFEST}: signature")
    found = _read(place.read(path, SIGNATURE_BYTES_MAX), path)
    for key in keys:
        if key in found and signing.is_signed(key, signed, found[key], signing.MODEL):
            return key
    others = sorted(set(found) - set(keys))
    wrong = f"is by {', '.join(others)}, whom models.signed_by does not name"
    if len(others) < len(found):
        wrong = "does not hold: name, version or a file is not what was signed"
    raise ModelError(f"{path}: {wrong}", "install the model again, from whom you trust")


def line(key: signing.Key, signed: bytes) -> bytes:
    """The line of one who signs."""
    return f"{key.public} {base64.b64encode(key.sign(signed, signing.MODEL)).decode()}\n".encode()


def _read(content: bytes, path: Path) -> dict[str, bytes]:
    found = {}
    try:
        for text in content.decode("ascii").splitlines():
            key, signature = text.split()
            found[signing.public_key(key)] = base64.b64decode(signature, validate=True)
    except (ProtocolError, ValueError, binascii.Error) as error:
        raise ModelError(
            f"{path}: expected lines of a public key and a signature in Base64",
            "install the model again",
        ) from error
    return found
