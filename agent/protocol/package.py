"""A version of the agent as it travels: one file, signed by who made it.

Limits  : PACKAGE_BYTES_MAX of a file, MANIFEST_BYTES_MAX of its manifest, WHEELS_MAX wheels.
Format  : a tar file. Its first member, `manifest`, is JSON: {"signed": TEXT, "by": "hf1pub:...",
          "signature": BASE64}, the signature of the SHA-256 of TEXT, and TEXT a Manifest as JSON.
          All others are the wheels that it names, in its order.
Recovery: a file that is cut, or has a wheel that is not the one that was signed for, is refused as
          a whole; nothing is used before all of it was compared.
"""

import base64
import binascii
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import ProtocolError
from agent.forms import PublicKey
from agent.protocol import signing
from agent.protocol.envelope import from_json

PACKAGE_BYTES_MAX = 2 << 30
MANIFEST_BYTES_MAX = 1 << 20
WHEELS_MAX = 512
PIECE_BYTES = 1 << 20
AGENT = b"holdfast agent 1\0"  # what a package's signature begins with
FIRST = "manifest"

# No part of a path, and nothing that pip would read as more than a file's name.
WheelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+!-]{1,200}\.whl$")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9}){0,3}$")]
Machine = Literal["x86_64", "aarch64", "any"]  # platform.machine(); any: no wheel is of a machine


class Wheel(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the package; `digest` is its SHA-256."""

    name: WheelName
    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=PACKAGE_BYTES_MAX)]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. `python` is the one that the wheels are for, as 3.11."""

    version: Version
    python: Annotated[str, Meta(pattern=r"^3\.[0-9]{1,3}$")]
    machine: Machine
    wheels: Annotated[list[Wheel], Meta(min_length=1, max_length=WHEELS_MAX)]


class _Signed(Struct, frozen=True, forbid_unknown_fields=True):
    signed: str
    by: PublicKey
    signature: str


class Package:
    """A package that is open for reading; nothing of it is believed that was not signed."""

    def __init__(self, file: BinaryIO, keys: Sequence[str]) -> None:
        """Reads the manifest alone. `keys` are those that are believed. Raises ProtocolError."""
        try:
            self._tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the file is whose it is)
            text = self._first()
        except tarfile.TarError as error:
            raise _foreign(f"no package: {error}") from error
        self.manifest = from_json(_verified(text, keys), Manifest)
        names = [one.name for one in self.manifest.wheels]
        if len(set(names)) < len(names):
            raise _foreign("two wheels of one name")

    def unpack(self, folder: Path) -> None:
        """Put all wheels there, each as it was signed. Raises ProtocolError, OSError."""
        try:
            members = self._files()
            for wheel in self.manifest.wheels:
                member = next(members, None)
                if member is None or member.name != wheel.name or member.size != wheel.size_bytes:
                    raise _foreign(f"expected {wheel.name} of {wheel.size_bytes} bytes next")
                self._copy(member, folder / wheel.name, wheel.digest)
            if next(members, None) is not None:
                raise _foreign("more than was signed for")
        except tarfile.TarError as error:
            raise _foreign(f"the package is cut or damaged: {error}") from error

    def _first(self) -> bytes:
        member = next(self._files(), None)
        if member is None or member.name != FIRST or member.size > MANIFEST_BYTES_MAX:
            raise _foreign(f"no package: expected {FIRST}, of {MANIFEST_BYTES_MAX} bytes at most")
        return self._opened(member).read()

    def _files(self) -> Iterator[tarfile.TarInfo]:
        while (member := self._tar.next()) is not None:
            if not member.isreg():
                raise _foreign(f"{member.name[:80]!r} is no file")
            self._tar.members = []  # type: ignore[attr-defined] # else each is kept
            yield member

    def _copy(self, member: tarfile.TarInfo, place: Path, digest: str) -> None:
        found, source = hashlib.sha256(), self._opened(member)
        with place.open("xb") as file:
            while piece := source.read(PIECE_BYTES):
                found.update(piece)
                file.write(piece)
        if found.hexdigest() != digest:
            raise _foreign(f"{member.name} is not the one that was signed for")

    def _opened(self, member: tarfile.TarInfo) -> BinaryIO:
        source = self._tar.extractfile(member)
        assert source, "it is a regular file"
        return source  # type: ignore[return-value]


def pack(
    out: BinaryIO,
    wheels: Sequence[Path],
    version: str,
    python: str,
    machine: Machine,
    key: signing.Key,
) -> Manifest:
    """Write a package. Raises ProtocolError, OSError."""
    rows = [Wheel(one.name, *_measured(one)) for one in wheels]
    made = Manifest(version=version, python=python, machine=machine, wheels=rows)
    text = msgspec.json.encode(made)
    from_json(text, Manifest)  # what could not be read is not written
    signature = base64.b64encode(key.sign(hashlib.sha256(text).digest(), AGENT)).decode()
    head = msgspec.json.encode(_Signed(text.decode(), key.public, signature))
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        first = tarfile.TarInfo(FIRST)
        first.size = len(head)
        tar.addfile(first, io.BytesIO(head))
        for path, row in zip(wheels, rows, strict=True):
            member = tarfile.TarInfo(row.name)
            member.size = row.size_bytes
            with path.open("rb") as file:
                tar.addfile(member, file)
    return made


def newer_or_same(version: str, than: str) -> bool:
    """Whether a version is not older than another; what is no number sorts before all."""
    return _numbers(version) >= _numbers(than)


def _numbers(version: str) -> list[int]:
    found = re.match(r"[0-9]+(\.[0-9]+)*", version)
    numbers = [int(one) for one in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()  # 1.0 is 1
    return numbers


def _verified(text: bytes, keys: Sequence[str]) -> bytes:
    signed = from_json(text, _Signed)
    if signed.by not in keys:
        raise ProtocolError(
            f"it is signed by {signed.by}, which is none of the keys that are believed here",
            "have it signed by whom /etc/holdfast/update.keys names",
        )
    inner = signed.signed.encode()
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _foreign(f"the signature: {error}") from error
    if not signing.is_signed(signed.by, hashlib.sha256(inner).digest(), signature, AGENT):
        raise _foreign(f"the signature is not of this package by {signed.by}")
    return inner


def _measured(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _foreign(what: str) -> ProtocolError:
    return ProtocolError(what, "fetch it again; if it stays so, have it made anew")
