"""The bundle: a file that carries records, or acks, across an air gap.

Limits  : a frame holds FRAME_BYTES_MAX; reader and writer keep one frame in memory. A bundle of
          acks has ACK_BUNDLE_BYTES_MAX in all.
Format  : 8 bytes magic and version, then frames: 1 byte kind, 4 bytes length, 4 bytes CRC-32 of
          kind, length and content (all big endian), content. In this order:

              H  header (JSON): who wrote it, for what, which part it is and which one it follows
              S  seal of the header
              B  a batch or P a piece of a blob, each as MQTT carries it (a bundle of data)
              A  an ack, as MQTT carries it (a bundle of acks)
              F  footer (JSON): how many frames, what they cover, whether more parts follow
              S  seal of the whole

          A seal is an Ed25519 signature of the sha256 of all bytes before it. Nothing follows the
          last one.
Recovery: there is none in the file. A frame is believed only when the last seal has been read, so
          whoever takes something from a bundle reads it twice: `verify`, then `frames`. One that
          was cut off has no footer, and nothing of it is taken: it is written again.

Encryption (age) goes around the whole file and is not this module's business.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

from agent.errors import BundleError, ProtocolError
from agent.forms import DeviceId
from agent.protocol import signing
from agent.protocol.envelope import from_json
from agent.records import Range

MAGIC = b"HFBNDL1\n"
AGE_MAGIC = b"age-encryption.org/"
FRAME_BYTES_MAX = 64 << 20
ACK_BUNDLE_BYTES_MAX = 4 << 20
HEADER, SEAL, BATCH, PIECE, ACK, COMMAND, FOOTER = (bytes([one]) for one in b"HSBPACF")
PART_BYTES_MIN, PART_BYTES_MAX = 1 << 20, 4_000_000_000  # FAT32 ends below 4 GiB
PARTS_MAX = 1_000_000  # of an export
_STEP_BYTES = 1 << 20
_PREFIX = struct.Struct("!cII")
_CONTENT: dict[str, tuple[bytes, ...]] = {
    "data": (BATCH, PIECE),
    "ack": (ACK,),
    "commands": (COMMAND,),
}

T = TypeVar("T")
Frame = tuple[bytes, bytes]  # its kind and its content


class Source(Protocol):
    """What a bundle is read from, from its beginning: a file, or what reads as one."""

    def read(self, size: int, /) -> bytes:
        """As a file's."""


class Header(Struct, frozen=True, kw_only=True):
    """What a bundle is: `data` from a device, or an `ack` or `commands` for it.

    `export` names one export, of which this is part `part` (from 1); `follows` is the digest of the
    part before it ("" in the first), and an ack's that of the last part it answers. `epochs` are
    those that it speaks of. `created` is a wall label in UTC, `by` the public key of who signed.
    """

    kind: Literal["data", "ack", "commands"]
    device: DeviceId
    export: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]
    part: Annotated[int, Meta(ge=1, le=PARTS_MAX)]
    by: str
    created: str
    epochs: list[str] = []
    follows: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")] = ""


class Footer(Struct, frozen=True, kw_only=True):
    """What was in it. `covers`: by epoch and stream the seqs it speaks of, dropped ones included.

    `more`: further parts of this export follow.
    """

    frames: int
    records: int
    blob_bytes: int
    covers: dict[str, dict[str, Range]]
    more: bool = False


class Sealed(Struct, frozen=True):
    """A bundle that is whole, and signed by `header.by`. `digest` is the sha256 of all of it."""

    header: Header
    footer: Footer
    digest: str
    size_bytes: int


class Writer:
    """Makes the bytes of a bundle, in order: `begin`, `frame` as often as needed, `end`."""

    def __init__(self, header: Header, key: signing.Key) -> None:
        self.size_bytes = 0
        self.frames = 0
        self._header = header
        self._key = key
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The sha256 of all that was made so far."""
        return self._digest.hexdigest()

    def begin(self) -> bytes:
        """Magic, header and its seal."""
        self._count(MAGIC)
        header = self._made(HEADER, msgspec.json.encode(self._header))
        return MAGIC + header + self._seal()

    def frame(self, kind: bytes, content: bytes) -> bytes:
        """One frame of content."""
        assert kind in _CONTENT[self._header.kind], kind
        self.frames += 1
        return self._made(kind, content)

    def end(self, footer: Footer) -> bytes:
        """Footer and last seal."""
        return self._made(FOOTER, msgspec.json.encode(footer)) + self._seal()

    def _seal(self) -> bytes:
        return self._made(SEAL, self._key.sign(self._digest.digest()))

    def _made(self, kind: bytes, content: bytes) -> bytes:
        assert len(content) <= FRAME_BYTES_MAX, len(content)
        made = _PREFIX.pack(kind, len(content), _crc(kind, content)) + content
        self._count(made)
        return made

    def _count(self, made: bytes) -> None:
        self.size_bytes += len(made)
        self._digest.update(made)


def opened(file: Source) -> Header:
    """The header alone, from the file's beginning; its own seal is right. Raises as `verify`."""
    return _Reader(file).header()


def verify(file: Source) -> Sealed:
    """Read a bundle from its beginning to its end, and say what it is.

    Whose key `header.by` is, and whether it is believed, is the caller's to judge. Raises
    BundleError (`not_a_bundle`, `encrypted`, `cut_off`, `damaged`), and what `file` raises.
    """
    reader = _Reader(file)
    header = reader.header()
    frames = 0
    while (frame := reader.next())[0] in _CONTENT[header.kind]:
        frames += 1
    if frame[0] != FOOTER:
        raise reader.damaged("a frame that does not belong there")
    footer = reader.decoded(frame[1], Footer)
    if footer.frames != frames:
        raise reader.damaged(f"{frames} frames, and a footer that speaks of {footer.frames}")
    reader.check_seal(header)
    reader.check_end()
    return Sealed(header, footer, reader.digest(), reader.read_bytes)


def frames(file: Source) -> Iterator[Frame]:
    """The content of a bundle that `verify` found whole, from the file's beginning.

    Raises BundleError if it is not what it was then.
    """
    reader = _Reader(file)
    kinds = _CONTENT[reader.header().kind]
    while (frame := reader.next())[0] in kinds:
        yield frame


class _Reader:
    """Reads frame after frame; `read_bytes` are the bytes taken so far."""

    def __init__(self, file: Source) -> None:
        self.read_bytes = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._sealed = b""  # what the last seal must be the signature of
        self._opened: Header | None = None  # once its seal was right

    def digest(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()

    def header(self) -> Header:
        """The header, its own seal checked."""
        begin = self._up_to(len(MAGIC))
        if begin != MAGIC:
            raise _no_bundle(begin + self._up_to(len(AGE_MAGIC) - len(begin)))
        self._digest.update(begin)
        kind, content = self.next()
        if kind != HEADER:
            raise self.damaged("no header")
        header = self.decoded(content, Header)
        self.check_seal(header)
        self._opened = header
        return header

    def next(self) -> Frame:
        """The next frame. Raises BundleError when it is not whole."""
        prefix = self._exactly(_PREFIX.size)
        kind, size, crc = _PREFIX.unpack(prefix)
        if size > FRAME_BYTES_MAX:
            raise self.damaged(f"a frame of {size} bytes")
        content = self._exactly(size)
        if _crc(kind, content) != crc:
            raise self.damaged("a frame whose checksum is wrong")
        if kind == SEAL:  # it speaks of what is before it
            self._sealed = self._digest.digest()
        self._digest.update(prefix)
        self._digest.update(content)
        return kind, content

    def check_seal(self, header: Header) -> None:
        """The next frame is the signature, by the header's key, of all before it."""
        kind, signature = self.next()
        if kind != SEAL:
            raise self.damaged("no seal where one belongs")
        try:
            right = signing.is_signed(header.by, self._sealed, signature)
        except ProtocolError as error:
            raise self.damaged(str(error)) from error
        if not right:
            raise self.damaged("a seal that is not of this content")

    def check_end(self) -> None:
        """Nothing follows."""
        if self._file.read(1):
            raise self.damaged("more bytes after its end")

    def decoded(self, content: bytes, kind: type[T]) -> T:
        """JSON of the bundle as a `kind`."""
        try:
            return from_json(content, kind)
        except ProtocolError as error:
            raise self.damaged(str(error)) from error

    def damaged(self, what: str) -> BundleError:
        """The error that says so, and where."""
        return BundleError(
            f"{self._what()} is damaged: {what}, at byte {self.read_bytes:,}",
            "nothing of it was taken; copy it again, or export again",
            "damaged",
        )

    def _what(self) -> str:
        if self._opened is None:
            return "the bundle"
        one = self._opened
        return f"part {one.part} of export {one.export} of device {one.device}"

    def _exactly(self, size: int) -> bytes:
        taken = self._up_to(size)
        if len(taken) < size:
            raise BundleError(
                f"{self._what()} is cut off after {self.read_bytes:,} bytes: its end is missing",
                "nothing of it was taken; copy it again, or export again",
                "cut_off",
            )
        return taken

    def _up_to(self, size: int) -> bytes:
        """Fewer only at the end; read in steps, so that a length that lies takes no memory."""
        taken = bytearray()
        while len(taken) < size and (step := self._file.read(min(size - len(taken), _STEP_BYTES))):
            taken += step
        self.read_bytes += len(taken)
        return bytes(taken)


def _no_bundle(begin: bytes) -> BundleError:
    if begin.startswith(AGE_MAGIC):
        return BundleError(
            "the bundle is encrypted with age",
            "give the identity of one of its recipients: --identity FILE",
            "encrypted",
        )
    if MAGIC.startswith(begin):
        return BundleError(
            f"the bundle is cut off after {len(begin)} bytes", "copy it again", "cut_off"
        )
    if begin.startswith(MAGIC[:-2]):
        return BundleError(
            "the bundle is of another version of the format", "update Holdfast here", "version"
        )
    return BundleError("this is no Holdfast bundle", "name a file *.hfb", "not_a_bundle")


def _crc(kind: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(kind + len(content).to_bytes(4, "big")))
