"""The evaluation on the held-out speaker, written as the model card; no figure is typed by hand."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import torch
import yaml

from . import stress
from .framing import Stream
from .layout import BINS, HOP, WINDOW, layout, parser
from .measures import area, attenuation_db, si_sdr
from .mixtures import Mixer, Scene
from .network import STATE, Network
from .runtime import OUTPUTS, enhanced, session
from .sounds import MUSIC, SOURCES

SEED = 555
SCENE_HOPS = 750  # 12 s
RATIOS_DB = (0, 5, 10)
PER_CELL = 6  # scenes per kind of noise and ratio, every other one in a room
STREAMS = 60  # scenes that are run side by side
TIMED_CALLS = 3000
TEMPLATE = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class Trials:
    """Test scenes stacked: samples [N, T*HOP], labels [N, T], and the kind and ratio of each."""

    noisy: np.ndarray
    clean: np.ndarray
    speech: np.ndarray
    kinds: np.ndarray
    ratios: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What a model made of the trials: gain in SI-SDR (dB) [N], speech [N, T], output samples."""

    before: np.ndarray
    after: np.ndarray
    speech: np.ndarray
    output: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """SI-SDR after less before, dB [N]."""
        return self.after - self.before


def trials(work: Path) -> Trials:
    """All test scenes: each kind of noise at each ratio."""
    mixer = Mixer(work, "test", SEED)
    rows: list[tuple[Scene, str, int]] = [
        (mixer.trial(SCENE_HOPS * HOP, kind, ratio, room=bool(number % 2)), kind, ratio)
        for kind in dict.fromkeys(mixer.kinds)
        for ratio in RATIOS_DB
        for number in range(PER_CELL)
    ]
    parts = (
        np.stack([getattr(scene, part) for scene, _, _ in rows])
        for part in ("noisy", "clean", "speech")
    )
    return Trials(
        *parts, np.array([kind for _, kind, _ in rows]), np.array([ratio for _, _, ratio in rows])
    )


def answers(model: onnxruntime.InferenceSession, asked: Trials) -> Answers:
    """Run a model over all trials."""
    results = [
        enhanced(model, asked.noisy[first : first + STREAMS])
        for first in range(0, len(asked.noisy), STREAMS)
    ]
    output = np.concatenate([wave for wave, _ in results])
    clean, noisy = asked.clean[:, : output.shape[1]], asked.noisy[:, : output.shape[1]]
    return Answers(
        si_sdr(noisy, clean),
        si_sdr(output, clean),
        np.concatenate([speech for _, speech in results]),
        output,
    )


def pause_attenuation(asked: Trials, found: Answers) -> np.ndarray:
    """Attenuation (dB) [N] of the samples at which no speech is, per trial."""
    frames = found.output.shape[1] // HOP
    # The samples of hop k belong to the frames k and k+1: both have to be free of speech.
    quiet = (asked.speech[:, :frames] + asked.speech[:, 1 : frames + 1]) == 0
    quiet = np.repeat(quiet, HOP, axis=1)
    noisy = asked.noisy[:, : found.output.shape[1]]
    return attenuation_db(found.output * quiet, noisy * quiet)


def row(name: str, asked: Trials, found: Answers, chosen: np.ndarray) -> str:
    """One line of a table of figures over the chosen trials."""
    labels, scores = asked.speech[chosen], found.speech[chosen]
    cells = (
        f"{found.before[chosen].mean():.1f}",
        f"{found.after[chosen].mean():.1f}",
        f"**{found.gain[chosen].mean():.1f}**",
        f"{pause_attenuation(asked, found)[chosen].mean():.0f}",
        f"{area(scores.ravel(), labels.ravel()):.3f}",
        f"{100 * (scores[labels > 0.5] > 0.5).mean():.0f} %",
        f"{100 * (scores[labels < 0.5] > 0.5).mean():.0f} %",
    )
    return f"| {name} | " + " | ".join(cells) + " |"


def by_ratio(asked: Trials, found: Answers) -> str:
    """Figures at each signal-to-noise ratio."""
    return "\n".join(row(f"{ratio} dB", asked, found, asked.ratios == ratio) for ratio in RATIOS_DB)


def by_kind(asked: Trials, found: Answers) -> str:
    """Figures for each kind of noise at the middle ratio."""
    return "\n".join(
        row(kind, asked, found, (asked.kinds == kind) & (asked.ratios == RATIOS_DB[1]))
        for kind in dict.fromkeys(asked.kinds)
    )


def median_us(call: Callable[[], object]) -> float:
    """Median duration of a call in microseconds, after a warm-up."""
    for _ in range(200):
        call()
    durations = []
    for _ in range(TIMED_CALLS):
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return float(np.median(durations)) * 1e6


def timing(model: onnxruntime.InferenceSession, noisy: np.ndarray) -> tuple[float, float]:
    """Microseconds per hop for N streams of samples [N, HOP]: the model only, and with the STFT."""
    stream, state = Stream(len(noisy)), np.zeros((len(noisy), STATE), np.float32)
    fixed = {"spectrum": stream.analyse(noisy), "state": state}
    fixed["state"] = model.run(OUTPUTS, fixed)[2]

    def whole() -> None:
        feeds = {"spectrum": stream.analyse(noisy), "state": fixed["state"]}
        stream.synthesise(model.run(OUTPUTS, feeds)[0])

    return median_us(lambda: model.run(OUTPUTS, fixed)), median_us(whole)


def speeds(models: dict[str, onnxruntime.InferenceSession], noisy: np.ndarray) -> str:
    """Durations of every model for 1 and 16 streams."""
    lines = []
    for name, model in models.items():
        for count in (1, 16):
            alone, whole = timing(model, noisy[:count, :HOP])
            lines.append(f"| {name} | {count} | {alone:.0f} | {whole:.0f} |")
    return "\n".join(lines)


def processor() -> str:
    """The kind of processor, without its name."""
    flags = Path("/proc/cpuinfo").read_text().split()
    dots = "AVX512-VNNI" if "avx512_vnni" in flags else "no VNNI"
    return f"{platform.machine().replace('_', '-')} with {dots}, one thread"


def voices(split: str) -> str:
    """The speakers of a split as table rows."""
    return "\n".join(
        f"| {s.speaker} | {s.sex} | {s.languages} | {s.licence} | `{s.package}` |"
        for s in SOURCES
        if s.split == split
    )


def shipped(model: onnxruntime.InferenceSession, samples: Path) -> str:
    """SI-SDR before and after for each recording below `samples`."""
    lines = []
    for path in sorted(samples.glob("*.flac")):
        noisy, clean = (
            soundfile.read(file, dtype="float32")[0][None]
            for file in (path, samples / "clean" / path.name)
        )
        output, _ = enhanced(model, noisy)
        size = output.shape[1]
        before, after = (si_sdr(wave[:, :size], clean[:, :size])[0] for wave in (noisy, output))
        lines.append(f"| `{path.name}` | {before:.1f} | {after:.1f} | **{after - before:.1f}** |")
    return "\n".join(lines)


def untouched(model: onnxruntime.InferenceSession, clean: np.ndarray) -> dict[str, float]:
    """SI-SDR (dB) of speech [N, T*HOP] that had no noise in it: the harm the model does."""
    output, _ = enhanced(model, clean)
    left = si_sdr(output, clean[:, : output.shape[1]])
    return {"clean_median": float(np.median(left)), "clean_worst": float(left.min())}


def figures(asked: Trials, quantised: Answers, exact: Answers) -> dict[str, object]:
    """What the card says about quality, by the template's names."""
    kept = {"all": quantised.gain.mean() / exact.gain.mean()} | {
        f"{ratio} dB": quantised.gain[chosen].mean() / exact.gain[chosen].mean()
        for ratio in RATIOS_DB
        for chosen in [asked.ratios == ratio]
    }
    return {
        "scenes": len(asked.noisy),
        "middle": RATIOS_DB[1],
        "by_ratio": by_ratio(asked, quantised),
        "by_kind": by_kind(asked, quantised),
        "float_ratio": by_ratio(asked, exact),
        "share": 100 * kept.pop("all"),
        "shares": ", ".join(f"{100 * share:.1f} % at {name}" for name, share in kept.items()),
        "worst": quantised.gain.min(),
        "worse": 100 * (quantised.gain < 0).mean(),
    }


def versions() -> str:
    """The packages that the figures depend on."""
    return (
        f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}"
    )


def main() -> None:
    """Evaluate the shipped model against its FP32 form and write the card."""
    places = layout(parser(main.__doc__).parse_args())
    manifest = yaml.safe_load((places.model / "model.yaml").read_text())
    models = {
        "INT8 (ships)": session(places.model / manifest["file"]),
        "FP32": session(places.work / "float.onnx"),
    }
    asked = trials(places.work)
    quantised, exact = (answers(model, asked) for model in models.values())
    middle = asked.ratios == RATIOS_DB[1]
    text = TEMPLATE.read_text().format(
        **figures(asked, quantised, exact),
        **untouched(models["INT8 (ships)"], asked.clean[middle]),
        shipped=shipped(models["INT8 (ships)"], places.samples),
        stress=stress.table(models["INT8 (ships)"], asked.noisy[middle], asked.clean[middle]),
        speeds=speeds(models, asked.noisy),
        processor=processor(),
        versions=versions(),
        parameters=sum(p.numel() for p in Network().parameters()),
        size_kb=manifest["size_bytes"] / 1000,
        state=STATE,
        bins=BINS,
        window=WINDOW,
        hop=HOP,
        train_voices=voices("train"),
        test_voices=voices("test"),
        music=MUSIC,
    )
    (places.model / "README.md").write_text(text)


if __name__ == "__main__":
    main()
