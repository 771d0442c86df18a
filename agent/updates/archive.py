"""A version of a model as one file: its model.yaml first, then the files that this names.

Limits  : no more than model.yaml names, each once, of the size that it declares; a golden file has
          FILE_BYTES_MAX, a signature SIGNATURE_BYTES_MAX, and all whose size is not declared
          UNDECLARED_BYTES_MAX. So it is known before the first byte of a file is written how much
          there may be, and a small archive cannot become a large folder.
Format  : tar.py; folders may be named, and make nothing.
Recovery: it is unpacked beside the models, and is nothing until it was digested, verified, proved
          and renamed (repository.py). What a crash leaves of it is removed before the next.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from agent import plain_file
from agent.errors import ModelError
from agent.inference.catalog.golden import FILE_BYTES_MAX
from agent.inference.catalog.manifest import MANIFEST, MANIFEST_BYTES_MAX, NAME, Manifest, parse
from agent.inference.catalog.signature import SIGNATURE_BYTES_MAX
from agent.updates.tar import FORM, Entry, Source, Tar

UNDECLARED_BYTES_MAX = 256 << 20


class Wanted(NamedTuple):
    """What an archive has to be; '' and 0: whatever it says."""

    sha256: str  # of the file
    name: str = ""
    version: int = 0


class Unpacker:
    """Makes a folder of an archive; slow, for a thread."""

    def __init__(self, room: Callable[[int], None], halted: Callable[[], bool]) -> None:
        """`room` raises ModelError where so many more bytes have none; `halted`: give up."""
        self._room = room
        self._halted = halted

    def unpack(self, path: Path, root: Path, wanted: Wanted) -> Manifest:
        """Make `root`/NAME/VERSION, fsynced, of the archive at `path`.

        Raises ModelError, for a full disk too; then something of it may be there.
        """
        try:
            with plain_file.opened(path) as file:
                source = Source(cast(BufferedReader, file), self._halted)
                manifest = self._unpacked(Tar(source, path), path, root, wanted)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be unpacked: {error.strerror or error}",
                "see that the file is there, and that the disk of the models takes it",
            ) from error
        if (found := source.sha256.hexdigest()) != wanted.sha256:
            raise ModelError(
                f"{path}: sha256 is {found[:12]}…, expected {wanted.sha256[:12]}…",
                "it is another file, or damaged: copy or fetch it again",
            )
        return manifest

    def _unpacked(self, tar: Tar, path: Path, root: Path, wanted: Wanted) -> Manifest:
        entries = tar.entries()
        first = next(entries, None)
        if first is None or first.name != MANIFEST or first.folder:
            raise ModelError(f"{path}: expected {MANIFEST} as the first of it", FORM)
        if first.size_bytes > MANIFEST_BYTES_MAX:
            raise ModelError(f"{path}: its {MANIFEST} is too large", "make it smaller")
        content = b"".join(tar.content(first))
        manifest = _fitting(parse(content, path / MANIFEST), path, wanted)
        sizes = expected(manifest, path)
        self._room(sum(size for size, exact in sizes.values() if exact))
        folder = root / manifest.name / str(manifest.version)
        folder.mkdir(parents=True)
        _write(folder / MANIFEST, [content])
        seen = self._files(tar, entries, sizes, folder, path)
        if missing := sorted(set(sizes) - seen):
            raise ModelError(f"{path}: without {missing[0]}, which its {MANIFEST} names", FORM)
        for one in (*(d for d in folder.rglob("*") if d.is_dir()), folder, folder.parent):
            sync(one)
        return manifest

    def _files(
        self,
        tar: Tar,
        entries: Iterable[Entry],
        sizes: dict[str, tuple[int, bool]],
        folder: Path,
        path: Path,
    ) -> set[str]:
        """Write what comes after model.yaml; what it was."""
        seen, undeclared = set[str](), 0
        for entry in entries:
            if entry.folder:
                continue
            size, exact = sizes.get(entry.name, (0, True))
            if entry.name not in sizes:
                said = f"{MANIFEST} does not name {entry.name[:80]!r}"
                raise ModelError(f"{path}: {said}", "leave it out, or name it there")
            if entry.name in seen:
                raise ModelError(f"{path}: has {entry.name} twice", FORM)
            if entry.size_bytes > size or (exact and entry.size_bytes != size):
                raise ModelError(
                    f"{path}: {entry.name} has {entry.size_bytes:,} bytes, expected {size:,}"
                    + ("" if exact else " at most"),
                    f"make {MANIFEST} and the archive again",
                )
            if not exact:
                undeclared += entry.size_bytes
                if undeclared > UNDECLARED_BYTES_MAX:
                    said = f"more than {UNDECLARED_BYTES_MAX:,} bytes of golden files"
                    raise ModelError(f"{path}: {said}", "take fewer rows")
                self._room(entry.size_bytes)
            seen.add(entry.name)
            _write(folder / entry.name, tar.content(entry))
        return seen


def expected(manifest: Manifest, path: Path) -> dict[str, tuple[int, bool]]:
    """The files beside model.yaml: bytes, and whether exactly so many. Raises ModelError."""
    sizes = {manifest.file: (manifest.size_bytes, True)}
    sizes |= {one.file: (one.size_bytes, True) for one in manifest.external}
    for pair in manifest.golden:
        sizes |= dict.fromkeys((pair.inputs, pair.outputs), (FILE_BYTES_MAX, False))
    if manifest.signature is not None:
        sizes[manifest.signature] = (SIGNATURE_BYTES_MAX, False)
    plain = {str(PurePosixPath(name)): size for name, size in sizes.items()}
    # On a file system that does not tell them apart, one of them would be written over the other.
    folded = [unicodedata.normalize("NFC", one).casefold() for one in (MANIFEST, *plain)]
    above = {str(one) for name in folded for one in PurePosixPath(name).parents}
    if len(set(folded)) < 1 + len(sizes) or above & set(folded):
        raise ModelError(
            f"{path}: its {MANIFEST} names a file twice, in large and small letters too, or one "
            "as the folder of another",
            "give each a name of its own",
        )
    return plain


def _fitting(manifest: Manifest, path: Path, wanted: Wanted) -> Manifest:
    """It is of the model and version that were ordered. Raises ModelError."""
    if not NAME.fullmatch(manifest.name):
        raise ModelError(f"{path}: {manifest.name[:80]!r} is no name of a model", "name it anew")
    found = (manifest.name, manifest.version)
    if found != (wanted.name or manifest.name, wanted.version or manifest.version):
        raise ModelError(
            f"{path}: is {manifest.name}/{manifest.version}, expected "
            f"{wanted.name}/{wanted.version or manifest.version}",
            "publish it under its own name and version",
        )
    return manifest


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """A new file, on the disk when this returns. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Have a folder's names on the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
