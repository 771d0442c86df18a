"""What every measurement prints: ratios that travel between machines, and figures that do not.

A ratio compares two ways of doing the same work inside one run, in turn (A B A B …), so that load
and clock speed of the machine touch both. Its value is the median of the per-pair ratios, its
spread their inter-quartile range. Which side of the target is good, each measurement says itself.
A figure is a plain number of this machine on this day; its key ends in its unit.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version

import msgspec
from msgspec import Struct

PACKAGES = ("onnxruntime", "numpy")
DIGITS = 4  # significant ones; the next are noise


class Ratio(Struct, frozen=True):
    """Median and inter-quartile range of per-pair ratios; no target: for information."""

    value: float
    target: float | None
    spread: float

    @classmethod
    def of(cls, pairs: Sequence[float], target: float | None = None) -> "Ratio":
        """From at least two per-pair ratios."""
        lower, middle, upper = statistics.quantiles(pairs, n=4, method="inclusive")
        return cls(_rounded(middle), target, _rounded(upper - lower))

    @classmethod
    def once(cls, value: float, target: float | None = None) -> "Ratio":
        """Of what a run does only once: there are no pairs, and no spread."""
        return cls(_rounded(value), target, 0.0)


class Report(Struct, frozen=True):
    """One run of one measurement; its fields are the keys of the JSON object."""

    name: str
    ratios: dict[str, Ratio]
    figures: dict[str, float]
    versions: dict[str, str]

    @classmethod
    def of(cls, name: str, ratios: dict[str, Ratio], figures: dict[str, float]) -> "Report":
        """With the versions of what ran, and the figures rounded."""
        return cls(name, ratios, {key: _rounded(x) for key, x in figures.items()}, _versions())

    def show(self, *, as_json: bool) -> None:
        """Print it: one JSON object, or a table for people."""
        if as_json:
            print(msgspec.json.encode(self).decode())
            return
        width = max(len(key) for key in (*self.ratios, *self.figures))
        print(f"{self.name}: {', '.join(f'{k} {v}' for k, v in self.versions.items())}")
        for key, ratio in self.ratios.items():
            target = "" if ratio.target is None else f"target {ratio.target:g}"
            print(f"  {key:<{width}}  {ratio.value:>9.3f}  ±{ratio.spread:.3f}  {target}".rstrip())
        for key, figure in self.figures.items():
            print(f"  {key:<{width}}  {figure:>9,.{_places(figure)}f}")


def options(about: str | None) -> argparse.ArgumentParser:
    """The command line that all measurements share."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--full", action="store_true", help="measure for minutes, for less noise")
    return parser


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def _places(number: float) -> int:
    """Decimals that show as many digits as count."""
    return max(0, DIGITS - len(str(int(abs(number)))))


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {sys.platform}",
    }
