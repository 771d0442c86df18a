"""What every step of the recipe shares: the framing constants, the paths, the command line."""

import argparse
from dataclasses import dataclass
from pathlib import Path

RATE_HZ = 16000
HOP = 256  # samples per call: 16 ms
WINDOW = 512  # samples per frame: the previous hop and the current one
BINS = WINDOW // 2 + 1

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Layout:
    """Where the recipe reads and writes; `work` may be deleted, `model` and `samples` ship."""

    work: Path
    model: Path
    samples: Path


def parser(purpose: str | None) -> argparse.ArgumentParser:
    """The options that every step of the recipe understands."""
    options = argparse.ArgumentParser(description=purpose)
    options.add_argument("--work", type=Path, default=REPOSITORY / "var/recipes/speech")
    options.add_argument("--model", type=Path, default=REPOSITORY / "models/speech/1")
    options.add_argument("--samples", type=Path, default=REPOSITORY / "samples")
    return options


def layout(options: argparse.Namespace) -> Layout:
    """The folders of a run, made if they are missing."""
    places = Layout(options.work, options.model, options.samples)
    for folder in (places.work, places.model, places.samples):
        folder.mkdir(parents=True, exist_ok=True)
    return places
