"""Recordings of any rate, channel count and usual format to 16 kHz mono PCM, and PCM to FLAC."""

import hashlib
import io
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from agent.errors import AudioError
from agent.records import RATE_HZ
from agent.words import printable

Pcm = NDArray[np.int16]
READ_SAMPLES = 1 << 17
SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".aiff", ".mp3")
RATE_HZ_MIN, RATE_HZ_MAX = 4000, 768_000
UNKNOWN_FRAMES = 1 << 50
UNKNOWN_BYTES = 0x7FFF_0000  # what programs that write into a pipe give as a size is above this
OGG_TAIL_BYTES = 1 << 17  # a page has at most 65,307
KNOWN = "WAV, FLAC, Ogg Opus, Ogg Vorbis, AIFF or MP3"


class TooLong(AudioError):
    """A recording has more sound than was asked for."""


class _Recording(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A file that is read from its beginning to its end, which may be known to nobody before."""

    def seekable(self) -> bool:
        """No: soundfile would then read no more than the header promises."""
        return False

    def promised(self, path: Path) -> int:
        """How many frames there would be if the file were whole, as far as it tells."""
        if self.frames >= UNKNOWN_FRAMES:
            return 0
        size = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", self.extra_info, re.M)
        if size and int(size[2]) < int(size[1]) < UNKNOWN_BYTES:
            return int(self.frames * int(size[1]) / max(1, int(size[2])))
        if self.format == "OGG" and not _ended(path):
            return int(self.frames) + 1
        return int(self.frames)


def _ended(path: Path) -> bool:
    """Whether an Ogg file's last page is whole and says that it is the last (RFC 3533, 6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - OGG_TAIL_BYTES))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:
        return False
    segments = page[27 : 27 + page[26]]
    return bool(page[5] & 4) and len(page) >= 27 + len(segments) + sum(segments)


class Resampler:
    """Interleaved sound of one rate and channel count, piece by piece, to 16 kHz mono."""

    def __init__(self, rate_hz: int) -> None:
        self._stream = None if rate_hz == RATE_HZ else soxr.ResampleStream(rate_hz, RATE_HZ, 1)

    def push(self, frames: NDArray[np.float32], *, last: bool = False) -> Pcm:
        """The next frames [n, channels], full scale 1; what is ready of them as PCM."""
        mono = np.ascontiguousarray(frames.mean(axis=1, dtype=np.float32))
        np.nan_to_num(mono, copy=False, posinf=1.0, neginf=-1.0)  # float recordings hold anything
        if self._stream is not None:
            mono = self._stream.resample_chunk(mono, last=last)
        return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)


def label(path: Path) -> str:
    """A file's name as text that can be stored and printed, whatever bytes it is made of."""
    return printable(path.name)


def check(path: Path, length_s_max: float = math.inf, samples_max: float = math.inf) -> float:
    """Read a recording to its end; its length in seconds. Raises AudioError or OSError.

    Of one that is longer than `length_s_max`, or has more than `samples_max` over all its channels,
    no more than that is read: TooLong.
    """
    if path.stat().st_size == 0:
        raise AudioError(f"{label(path)}: the file is empty (0 bytes)", "copy it here again")
    if path.is_file():
        path.open("rb").close()  # libsndfile would not say why it may not
    frames = 0
    with _opened(path) as sound:
        rate, promised = sound.samplerate, sound.promised(path)
        frames_max = min(length_s_max * rate, samples_max / sound.channels)
        try:
            while frames <= frames_max and len(block := _block(sound)):
                frames += len(block)
        except soundfile.LibsndfileError:
            promised = max(promised, frames + 1)
    if frames > frames_max:
        raise TooLong(
            f"{label(path)}: more than {frames_max / rate:g} s of sound at {rate} Hz",
            "send it in several parts",
        )
    if frames < promised:
        whole = f" of {promised / rate:.2f} s" if promised > frames + 1 else ""
        raise AudioError(
            f"{label(path)}: breaks off after {frames / rate:.2f} s{whole}",
            "the file is cut short or damaged: copy it here again",
        )
    if frames == 0:
        raise AudioError(f"{label(path)}: no sound in it", f"expected {KNOWN} with sound")
    return float(frames / rate)


def _block(sound: _Recording) -> NDArray[np.float32]:
    """The next frames [n, channels], so many that the samples of all channels are bounded."""
    frames = max(1, READ_SAMPLES // sound.channels)
    block: NDArray[np.float32] = sound.read(frames, dtype="float32", always_2d=True)
    return block


def _opened(path: Path) -> _Recording:
    try:
        sound = _Recording(os.fsencode(path))  # its own encoding is UTF-8 alone
    except soundfile.LibsndfileError as error:
        said = error.error_string.strip()
        raise AudioError(f"{label(path)}: not a recording: {said}", f"expected {KNOWN}") from error
    if not RATE_HZ_MIN <= sound.samplerate <= RATE_HZ_MAX:
        sound.close()
        raise AudioError(
            f"{label(path)}: a sampling rate of {sound.samplerate} Hz",
            f"expected {RATE_HZ_MIN} to {RATE_HZ_MAX} Hz",
        )
    return sound


def decode(path: Path, block_samples: int, skip: int = 0) -> Iterator[Pcm]:
    """A recording as PCM blocks of `block_samples` (the last one shorter), `skip` samples left out.

    The same file gives the same samples each time. Raises AudioError where it cannot be read on.
    """
    rest = np.zeros(0, np.int16)
    for pcm in _resampled(path):
        leave = min(skip, len(pcm))
        skip -= leave
        rest = np.concatenate([rest, pcm[leave:]])
        while len(rest) >= block_samples:
            yield rest[:block_samples]
            rest = rest[block_samples:]
    if len(rest):
        yield rest


def _resampled(path: Path) -> Iterator[Pcm]:
    with _opened(path) as sound:
        resampler = Resampler(sound.samplerate)
        frames, said = 0, "its end is missing"
        try:
            while len(block := _block(sound)):
                frames += len(block)
                yield resampler.push(block)
        except soundfile.LibsndfileError as error:
            said = error.error_string.strip()
        if frames < sound.promised(path):
            raise AudioError(f"{label(path)}: breaks off: {said}", "copy it here again")
        yield resampler.push(np.zeros((0, 1), np.float32), last=True)


def encode(pcm: Pcm) -> tuple[bytes, str]:
    """PCM as FLAC, without loss, and its sha256."""
    out = io.BytesIO()
    soundfile.write(out, pcm, RATE_HZ, format="FLAC", subtype="PCM_16")
    flac = out.getvalue()
    return flac, hashlib.sha256(flac).hexdigest()


class Encoder:
    """PCM to FLAC, bit by bit: the same bytes as `encode` gives of the whole.

    Only at the end is it known what FLAC says at its beginning (how long it is, its MD5), so the
    first `piece_bytes` are kept back until then.
    """

    def __init__(self, piece_bytes: int) -> None:
        self._out = _Out(piece_bytes)
        self._sound = soundfile.SoundFile(
            self._out, "w", RATE_HZ, channels=1, format="FLAC", subtype="PCM_16"
        )

    def push(self, pcm: Pcm) -> bytes:
        """The next samples; the FLAC that came out since, in whole pieces, without the first."""
        self._sound.write(pcm)
        return self._out.take()

    def finish(self, pcm: Pcm) -> tuple[bytes, bytes]:
        """The last samples; the first piece, and all that was not given out yet."""
        self._sound.write(pcm)
        self._sound.close()
        return bytes(self._out.first), bytes(self._out.rest)


class _Out:
    """Where libsndfile writes; at the end it goes back into the first piece, and nowhere else."""

    def __init__(self, piece_bytes: int) -> None:
        self.first = bytearray()
        self.rest = bytearray()
        self._piece_bytes = piece_bytes
        self._rest_at = piece_bytes  # the byte with which `rest` begins
        self._at = 0

    def take(self) -> bytes:
        """Whole pieces of `rest`, which it then no longer has."""
        size = len(self.rest) // self._piece_bytes * self._piece_bytes
        taken = bytes(self.rest[:size])
        del self.rest[:size]
        self._rest_at += size
        return taken

    def write(self, data: bytes) -> int:
        head = data[: max(0, self._piece_bytes - self._at)]
        self.first[self._at : self._at + len(head)] = head
        self._at += len(head)
        if tail := data[len(head) :]:
            assert self._at >= self._rest_at, "libsndfile goes back to what was given out"
            begin = self._at - self._rest_at
            self.rest[begin : begin + len(tail)] = tail
            self._at += len(tail)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    @property
    def _end(self) -> int:
        after_first = self._rest_at - self._piece_bytes + len(self.rest)
        return len(self.first) + after_first
