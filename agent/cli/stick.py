"""Writing a file to a stick that may be full, slow, or pulled at any moment.

A file has its own name only when all of it is on the disk: until then it is `.NAME.part`, which the
next export removes. What is encrypted is encrypted on its way: no plaintext lies there.
"""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyrage

from agent.errors import BundleUnfinished, ConfigError

COPY_BYTES = 256 * 1024
SYNC_BYTES = 16 << 20  # written, then waited for: else progress is that of the memory
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # as some file systems say
Read = Callable[[int], bytes]


def recipients(texts: list[str]) -> list[Any]:
    """The recipients of the configuration as age wants them. Raises ConfigError."""
    found = []
    for number, text in enumerate(texts):
        kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
        try:
            found.append(kind.Recipient.from_str(text))
        except pyrage.RecipientError as error:
            raise ConfigError(
                f"bundle.recipients[{number}]: {text!r} is no recipient of age: {error}",
                "make a key with age-keygen, and put its public key there",
            ) from error
    return found


def free_bytes(folder: Path) -> int:
    """How much room there is. Raises BundleUnfinished when the folder cannot be written to."""
    try:
        if folder.is_dir() and os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise BundleUnfinished(
                f"{folder}: it is mounted read-only, so nothing can be written there",
                "look for a switch on the stick, and mount it anew; a damaged file system is "
                "mounted so, too: then take another stick",
            )
        if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
            raise BundleUnfinished(
                f"{folder}: not a folder that this user may write to",
                "mount the stick, and name a folder on it",
            )
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise lost(folder, error) from error


def is_away(folder: Path, store: Path) -> bool:
    """Whether the folder lies on another file system than the store and the root: else no stick is
    mounted there. Raises BundleUnfinished when the folder is gone."""
    own = set[int]()
    for place in (Path("/"), store):
        with suppress(OSError):  # as by its rights: this user need not see the store
            own.add(place.stat().st_dev)
    try:
        return folder.stat().st_dev not in own
    except OSError as error:
        raise lost(folder, error) from error


def tidy(folder: Path) -> None:
    """Remove what an export that was interrupted left behind: files. Raises BundleUnfinished."""
    try:
        for left in folder.glob(".holdfast-*.part"):
            if left.is_file() and not left.is_symlink():
                left.unlink(missing_ok=True)
    except OSError as error:
        raise lost(folder, error) from error


def lost(where: Path, error: OSError) -> BundleUnfinished:
    """What the system says of a stick, as an error of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "there is no more room"
        hint = "take another stick and go on: holdfast bundle export --continue FOLDER"
    else:
        what = f"it cannot be written ({error.strerror or error}): was it pulled?"
        hint = "put it back, or take another, and go on: holdfast bundle export --continue FOLDER"
    return BundleUnfinished(f"{where}: {what}", hint)


def write(path: Path, read: Read, to: list[Any], whole: Callable[[], None]) -> int:
    """Write what `read` gives to `path`, encrypted for the recipients `to`, if any; its size.

    `whole` raises if what was read is not all there is; then, as whenever it is not finished, there
    is no file. Raises BundleUnfinished, and what `read` raises.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        try:
            with partial.open("xb", buffering=0) as file:
                target = _Target(file)
                _copy(_Source(read), target, to)
                whole()
                os.fsync(file.fileno())
            partial.rename(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise lost(path, error) from error
    except BaseException:  # whatever it was, what is not whole does not stay
        _remove(partial)
        raise
    return target.size_bytes


class _Source:
    """What is read; it remembers what went wrong, for age does not say."""

    def __init__(self, read: Read) -> None:
        self.error: Exception | None = None
        self._read = read

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        try:
            return self._read(size if size > 0 else COPY_BYTES)
        except Exception as error:  # whatever it is: kept, for age tells only that reading failed
            self.error = error
            raise


class _Target:
    """What is written; all of it, and on the disk every now and then."""

    def __init__(self, file: BinaryIO | Any) -> None:
        self.size_bytes = 0
        self.error: Exception | None = None
        self._file = file
        self._synced_bytes = 0

    def write(self, content: bytes) -> int:
        """As a file's, but never less than all."""
        try:
            view = memoryview(content)
            while view:
                view = view[self._file.write(view) :]
            self.size_bytes += len(content)
            if self.size_bytes - self._synced_bytes >= SYNC_BYTES:
                self._synced_bytes = self.size_bytes
                os.fdatasync(self._file.fileno())
        except OSError as error:
            self.error = error
            raise
        return len(content)

    def flush(self) -> None:
        """Nothing is kept back."""


def _copy(source: _Source, target: _Target, to: list[Any]) -> None:
    if not to:
        while step := source.read(COPY_BYTES):
            target.write(step)
        return
    try:
        pyrage.encrypt_io(source, target, to)
    except pyrage.EncryptError:
        raise source.error or target.error or AssertionError("age") from None


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        os.sync()
    finally:
        os.close(handle)


def _remove(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return  # the stick is gone, and it with it; else the next export removes it
