"""Recordings of any rate, channel count and usual format to 16 kHz mono PCM, and PCM to FLAC."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from agent.errors import AudioError
from agent.records import RATE_HZ

Pcm = NDArray[np.int16]
READ_FRAMES = 1 << 16
SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".aiff", ".mp3")
KNOWN = "WAV, FLAC, Ogg Opus, Ogg Vorbis, AIFF or MP3"


class Resampler:
    """Interleaved sound of one rate and channel count, piece by piece, to 16 kHz mono."""

    def __init__(self, rate_hz: int) -> None:
        self._stream = None if rate_hz == RATE_HZ else soxr.ResampleStream(rate_hz, RATE_HZ, 1)

    def push(self, frames: NDArray[np.float32], *, last: bool = False) -> Pcm:
        """The next frames [n, channels], full scale 1; what is ready of them as PCM."""
        mono = np.ascontiguousarray(frames.mean(axis=1, dtype=np.float32))
        if self._stream is not None:
            mono = self._stream.resample_chunk(mono, last=last)
        return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)


def check(path: Path) -> float:
    """Read a recording to its end; its length in seconds. Raises AudioError if that fails."""
    if path.stat().st_size == 0:
        raise AudioError(f"{path.name}: the file is empty (0 bytes)", "copy it here again")
    frames = 0
    try:
        with soundfile.SoundFile(path) as sound:
            rate, promised = sound.samplerate, sound.frames
            while len(block := sound.read(READ_FRAMES, dtype="float32", always_2d=True)):
                frames += len(block)
    except soundfile.LibsndfileError as error:
        if frames == 0:
            raise AudioError(
                f"{path.name}: not a recording: {error.error_string.strip()}",
                f"expected {KNOWN}",
            ) from error
        promised = max(promised, frames + 1)
    if frames == 0:
        raise AudioError(f"{path.name}: no sound in it", f"expected {KNOWN} with sound")
    if 0 < frames < promised:
        raise AudioError(
            f"{path.name}: breaks off after {frames / rate:.2f} s of {promised / rate:.2f} s",
            "the file is cut short or damaged: copy it here again",
        )
    return float(frames / rate)


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
    try:
        with soundfile.SoundFile(path) as sound:
            resampler = Resampler(sound.samplerate)
            while len(block := sound.read(READ_FRAMES, dtype="float32", always_2d=True)):
                yield resampler.push(block)
            yield resampler.push(np.zeros((0, 1), np.float32), last=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path.name}: {error.error_string.strip()}", f"expected {KNOWN}"
        ) from error


def encode(pcm: Pcm) -> tuple[bytes, str]:
    """PCM as FLAC, without loss, and its sha256."""
    out = io.BytesIO()
    soundfile.write(out, pcm, RATE_HZ, format="FLAC", subtype="PCM_16")
    flac = out.getvalue()
    return flac, hashlib.sha256(flac).hexdigest()
