"""The recordings that ship: held-out speaker, three kinds of noise, with their clean references."""

from pathlib import Path

import numpy as np
import soundfile

from .layout import HOP, RATE_HZ, layout, parser
from .mixtures import Mixer, levelled
from .noise import SECONDS
from .sounds import SOURCES

SEED = 77
SNR_DB = 5.0
LEVEL_DBFS = -22.0
RECORDINGS = {  # file -> kinds of noise in it, with their gains
    "machine-hall.flac": {"machine": 1.0, "hum": 0.5},
    "fan.flac": {"fan": 1.0, "coloured": 0.4},
    "workshop.flac": {"impacts": 1.0, "engine": 0.4},
}
CARD = """# Samples

Three noisy recordings for trying the speech model, and in `clean/` the same speech without the
noise, sample by sample. {seconds} s each, 16 kHz, mono, 16 bit FLAC, about {snr:g} dB
signal-to-noise ratio while somebody speaks. The speaker appears in no training data.

| file | noise |
|---|---|
{rows}

**Origin.** Speech: {speaker}, {languages} telephone prompts of the Asterisk core sounds (Debian
package `{package}`), decoded from G.722, put into a synthetic room with
pauses of 1 to 3 s and set to one level. The noise is synthesised. Made by
`python -m models.recipes.speech.samples`, seed {seed}.

**Licence.** The speech is under {licence} (https://creativecommons.org/licenses/by/3.0/),
(c) 2012 Carlo Flora, http://www.segreterietelefoniche.it, recorded by Carlo Flora, texts
translated by Silvia Petrin from the English originals of Digium, Inc. These files are changed
versions of it (see above) and are offered under the same licence.
"""


def write(folder: Path, name: str, samples: np.ndarray) -> None:
    """Store one recording as 16 bit FLAC."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, samples, RATE_HZ, subtype="PCM_16", format="FLAC")


def main() -> None:
    """Write the noisy samples, their clean references and the page about them."""
    places = layout(parser(main.__doc__).parse_args())
    mixer = Mixer(places.work, "test", SEED)
    size = SECONDS * RATE_HZ // HOP * HOP
    for name, kinds in RECORDINGS.items():
        clean = mixer.voice(size, (1.0, 3.0), room=True)
        noise = np.sum([gain * mixer.noise(size, kind) for kind, gain in kinds.items()], axis=0)
        scene = levelled(clean, noise, SNR_DB, LEVEL_DBFS)
        write(places.samples, name, scene.noisy)
        write(places.samples / "clean", name, scene.clean)
    source = next(source for source in SOURCES if source.split == "test")
    rows = "\n".join(f"| `{name}` | {', '.join(kinds)} |" for name, kinds in RECORDINGS.items())
    card = CARD.format(
        seconds=SECONDS,
        snr=SNR_DB,
        rows=rows,
        seed=SEED,
        speaker=source.speaker,
        languages=source.languages,
        package=source.package,
        licence=source.licence,
    )
    (places.samples / "README.md").write_text(card)


if __name__ == "__main__":
    main()
