"""Recorded human speech: fetched as Debian packages, decoded to 16 kHz, split by speaker.

The result is one int16 array (`speech.npy`, memory-mapped by the readers) that holds every prompt
at several speeds, and an index of it (`speech.json`).
"""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from .layout import HOP, RATE_HZ, layout, parser

SPEEDS = ((5, 4), (9, 8), (1, 1), (9, 10), (4, 5))  # speed as a fraction; 5/4 = faster and higher
LEVEL_DBFS = -26.0  # level of every stored prompt, over its active frames
FILES_PER_DECODE = 100  # one ffmpeg process decodes this many files
NOT_SPEECH = ("beep", "2tone", "silence/", "tt-monkeys", "tt-weasels")


@dataclass(frozen=True)
class Source:
    """One speaker's recordings inside one Debian package."""

    package: str
    pattern: str
    speaker: str
    sex: str
    languages: str
    licence: str
    split: str


SOUNDS = "usr/share/asterisk/sounds/"
RUSSIAN = "usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav/*.wav"
SOURCES = (
    Source(
        "asterisk-core-sounds-en-g722",
        SOUNDS + "en_US_f_Allison/**/*.g722",
        "Allison Smith",
        "f",
        "English",
        "CC-BY-SA-3.0",
        "train",
    ),
    Source(
        "asterisk-core-sounds-es-g722",
        SOUNDS + "es_MX_f_Allison/**/*.g722",
        "Allison Smith",
        "f",
        "Spanish",
        "CC-BY-SA-3.0",
        "train",
    ),
    Source(
        "asterisk-core-sounds-fr-g722",
        SOUNDS + "fr_CA_f_June/**/*.g722",
        "June Wallack",
        "f",
        "French",
        "CC-BY-SA-3.0",
        "train",
    ),
    Source(
        "asterisk-core-sounds-ru-g722",
        SOUNDS + "ru_RU_f_IvrvoiceRU/**/*.g722",
        "IvrvoiceRU (Maxim Topal)",
        "f",
        "Russian",
        "CC-BY-3.0",
        "train",
    ),
    Source("festvox-ru", RUSSIAN, "Nickolay V. Shmyrev", "m", "Russian", "BSD-like", "train"),
    Source(
        "gcin-voice",
        "usr/share/gcin-voice/ogg/**/5.ogg",
        "Chu Lo (ChionMeilin)",
        "f",
        "Mandarin",
        "CC-BY-3.0",
        "train",
    ),
    Source(
        "asterisk-core-sounds-it-g722",
        SOUNDS + "it_IT_m_Carlo/**/*.g722",
        "Carlo Flora",
        "m",
        "Italian",
        "CC-BY-3.0",
        "test",
    ),
)
MUSIC = "asterisk-moh-opsound-g722"  # Macroform, Manolo Camp, Reno Project; CC-BY-SA-3.0
MUSIC_PATTERN = "usr/share/asterisk/moh/*.g722"


@dataclass(frozen=True)
class Prompt:
    """One stored prompt: where it lies in `speech.npy` (samples) and who speaks."""

    name: str
    speaker: str
    split: str
    speed: float
    start: int
    length: int


def fetch(package: str, work: Path) -> Path:
    """Download and unpack a Debian package below `work`; returns the folder it was unpacked to."""
    unpacked = work / "packages" / package
    if not unpacked.exists():
        cache = work / "downloads"
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=cache, check=True)
        unpacked.parent.mkdir(exist_ok=True)
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", archive, unpacked], check=True)
    return unpacked


def decode(files: list[Path], folder: Path) -> list[np.ndarray]:
    """Decode any recordings to 16 kHz mono; returns one float32 array of samples (±1) per file."""
    folder.mkdir(parents=True, exist_ok=True)
    waves = []
    for first in range(0, len(files), FILES_PER_DECODE):
        batch = files[first : first + FILES_PER_DECODE]
        call = ["ffmpeg", "-y", "-loglevel", "error"]
        for file in batch:
            call += ["-i", str(file)]
        outputs = [folder / f"{number}.wav" for number in range(len(batch))]
        for number, output in enumerate(outputs):
            call += ["-map", str(number), "-ac", "1", "-ar", str(RATE_HZ), str(output)]
        subprocess.run(call, check=True)
        waves += [soundfile.read(output, dtype="float32")[0] for output in outputs]
    return waves


def trimmed(wave: np.ndarray) -> np.ndarray | None:
    """Cut silence off both ends and set the level; None where there is too little speech."""
    hops = wave[: len(wave) // HOP * HOP].reshape(-1, HOP)
    if len(hops) < 6:
        return None
    power = np.mean(hops**2, axis=1)
    active = np.flatnonzero(power > np.percentile(power, 95) * 10**-3.5)
    if len(active) < 6 or power.max() < 1e-7:
        return None
    level = np.sqrt(np.mean(power[power > power.max() * 10**-2.5]))
    kept = wave[max(0, active[0] - 3) * HOP : (active[-1] + 4) * HOP]
    kept = kept * (10 ** (LEVEL_DBFS / 20) / level)
    fade = np.linspace(0, 1, HOP, dtype=np.float32)  # a cut must not click
    kept[:HOP] *= fade
    kept[-HOP:] *= fade[::-1]
    return kept


def recordings(source: Source, work: Path) -> list[tuple[str, np.ndarray]]:
    """The usable prompts of one source as (name, samples), in a stable order."""
    root = fetch(source.package, work)
    files = [
        file
        for file in sorted(root.glob(source.pattern))
        if not any(part in str(file.relative_to(root)) for part in NOT_SPEECH)
    ]
    waves = decode(files, work / "decoded")
    pairs = [
        (str(file.relative_to(root)), trimmed(wave))
        for file, wave in zip(files, waves, strict=True)
    ]
    return [(name, wave) for name, wave in pairs if wave is not None]


def build_speech(work: Path) -> None:
    """Write `speech.npy` and `speech.json`; test speakers are stored at their own speed only."""
    pieces: list[np.ndarray] = []
    prompts: list[Prompt] = []
    start = 0
    for source in SOURCES:
        for name, wave in recordings(source, work):
            for up, down in SPEEDS if source.split == "train" else ((1, 1),):
                piece = wave if up == down else resample_poly(wave, down, up)
                piece = np.clip(piece * 32767, -32767, 32767).astype(np.int16)
                prompts.append(
                    Prompt(name, source.speaker, source.split, up / down, start, len(piece))
                )
                pieces.append(piece)
                start += len(piece)
    np.save(work / "speech.npy", np.concatenate(pieces))
    (work / "speech.json").write_text(json.dumps([asdict(prompt) for prompt in prompts]))


def build_music(work: Path) -> None:
    """Write `music.npy`: float32 [tracks, samples], every track cut to the shortest one."""
    files = sorted(fetch(MUSIC, work).glob(MUSIC_PATTERN))
    waves = decode(files, work / "decoded")
    shortest = min(len(wave) for wave in waves)
    np.save(work / "music.npy", np.stack([wave[:shortest] for wave in waves]))


def read_speech(work: Path, split: str) -> tuple[np.ndarray, list[Prompt]]:
    """The memory-mapped samples (int16) and the prompts of one split."""
    prompts = [Prompt(**row) for row in json.loads((work / "speech.json").read_text())]
    return np.load(work / "speech.npy", mmap_mode="r"), [p for p in prompts if p.split == split]


def main() -> None:
    """Fetch, decode and store all speech and music."""
    work = layout(parser(main.__doc__).parse_args()).work
    build_speech(work)
    build_music(work)


if __name__ == "__main__":
    main()
