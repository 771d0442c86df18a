"""Files of a model version, by the names that a manifest or a model gives them.

A name comes from whoever made the model. What it means must lie in the version's own folder, links
followed, and be a plain file.
"""

import hashlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from agent import plain_file
from agent.errors import ModelError

NAME_CHARACTERS_MAX = 255


def inside(folder: Path, name: str, what: str) -> Path:
    """Where the file `name` lies, which `what` in a manifest or a model names. Raises ModelError.

    `folder` is resolved, and so is the answer.
    """
    plain = name.isprintable() and "\\" not in name and 0 < len(name) <= NAME_CHARACTERS_MAX
    if not plain or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelError(
            f"{folder}: {what}: {name[:80]!r} is no name of a file below this folder",
            "name it from the version's folder on, without .. and without a / at its head",
        )
    try:
        path = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder / name}: is not there ({what})", "the copy is not whole: copy it again"
        ) from error
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ModelError(
            f"{folder / name}: cannot be read ({what}): {error}", "copy the model again"
        ) from error
    if not path.is_relative_to(folder):
        raise ModelError(
            f"{folder / name}: leads out of the version's folder, to {path} ({what})",
            "put the file itself there instead of a link",
        )
    return path


def opened(path: Path) -> BinaryIO:
    """The plain file at `path`, for reading. Raises ModelError."""
    try:
        return plain_file.opened(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror or error}",
            "copy the model again, and see that this user may read it",
        ) from error


def read(path: Path, bytes_max: int) -> bytes:
    """All of a small file. Raises ModelError."""
    with opened(path) as file:
        try:
            content = file.read(bytes_max + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(content) > bytes_max:
        raise ModelError(f"{path}: has more than {bytes_max:,} bytes", "make it smaller")
    return content


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 of a file of any size, in hex, and its bytes. Raises ModelError."""
    with opened(path) as file:
        try:
            found = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
            return found.hexdigest(), file.tell()
        except OSError as error:
            raise _unreadable(path, error) from error


def check(path: Path, what: str, sha256: str, size_bytes: int | None = None) -> None:
    """Whether a file is what the key `what` declares. Raises ModelError."""
    found, found_bytes = digest(path)
    if size_bytes is not None and found_bytes != size_bytes:
        raise ModelError(
            f"{path}: has {found_bytes:,} bytes, expected {size_bytes:,} ({what})",
            "the file is not whole or another one: install the model again",
        )
    same(path, what, found, sha256)


def same(path: Path, what: str, found: str, sha256: str) -> None:
    """Whether a file's digest is the declared one. Raises ModelError."""
    if found != sha256:
        raise ModelError(
            f"{path}: sha256 is {found[:12]}…, expected {sha256[:12]}… ({what})",
            "the file is damaged or was changed: install the model again",
        )


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path}: cannot be read: {error.strerror or error}", "check the disk")
