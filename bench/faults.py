"""What befalls an agent, how soon that is seen, how soon all is well again, and what is lost.

Each fault is done from outside to a real agent of its own, under a supervisor that does what
systemd does by the unit that ships; sound, calls and jobs come in, and a far side stores
(faults_site.py).

seen_vs_30_s   the slowest of all that were to be seen, over 30 s; smaller is better

It fails where something that was accepted is lost, or all is not well again.

Seen is what shows first: a condition, a process that began anew, a remedy of the watchdog, or what
the supervisor did. Back is when no new condition holds, every domain is ready, the watchdog feeds,
a call asked since has its answer, the link is up, and sound and hearing have both moved on; from
the fault on, or from its end where it lasts. Accepted is each record of the ledger, checked against
the far side's database and the store's own count; each file that lies in the folder; each job that
was taken; each call, which is answered, or told that it is not.
"""

import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from msgspec import Struct

from agent.errors import HoldfastError
from bench import report
from bench.faults_site import BACK_S, READY_S, Site, repository, told
from bench.faults_ways import FAULTS, Fault, arecord, compiled
from tests.outside import until
from tests.store.faults.disk import Disk

AT_ONCE = 7
SEEN_S = 30.0
VERIFY = "/api/v1/outbox/verify"
HEARD = "processed"  # of raw sound, which is not kept
JOB_ENDS = {"done", "failed", "cancelled"}


class Outcome(Struct):
    """Of one fault; seconds, none: never."""

    fault: Fault
    seen: str = ""
    seen_s: float | None = None
    back_s: float | None = None
    lost: tuple[str, ...] = ()
    counted: str = ""  # live sound that the ledger has as dropped
    calls: str = ""


class Trial:
    """One fault, from the start of an agent to its end."""

    def __init__(self, fault: Fault, site: Site) -> None:
        self._fault = fault
        self._site = site
        self._was = site.conditions()
        self._segments = site.ledger("inbox.segments")["produced"]

    def run(self) -> Outcome:
        """Break, wait, mend, wait, judge."""
        site, found = self._site, Outcome(self._fault)
        site.drop("after.flac")
        began_s = time.monotonic()
        with self._fault.way(site):
            with suppress(AssertionError):  # some are to be borne, not to be seen
                until(lambda: site.first_seen(began_s), "it is seen", self._fault.unseen_s)
            if seen := site.first_seen(began_s):
                found.seen, found.seen_s = seen.what, seen.at_s - began_s
            if self._fault.lasts_s is not None:
                time.sleep(self._fault.lasts_s)
        over_s = began_s if self._fault.lasts_s is None else time.monotonic()
        with suppress(AssertionError):
            until(lambda: self._well(over_s), "all is well", BACK_S)
            found.back_s = time.monotonic() - over_s
        found.lost = tuple(self._lost())
        dropped = site.ledger("hall.raw")["dropped"]
        found.counted = ", ".join(
            f"{count} {why}" for why, count in dropped.items() if why != HEARD and count
        )
        found.calls = ", ".join(f"{n} {what}" for what, n in site.callers.outcomes.items())
        return found

    def _well(self, since_s: float) -> bool:
        site = self._site
        if site.looked_s < since_s:
            return False
        if not hasattr(self, "_from"):
            self._from = site.progress()
            return False
        now = site.progress()
        if any(now[what] < before for what, before in self._from.items()):  # another life
            self._from = now
        return (
            site.conditions() <= self._was
            and site.all_ready()
            and bool(site.watched["fed"])
            and site.status["link"]["connected"]
            and site.callers.answered_s > since_s
            and all(now[what] > before for what, before in self._from.items())
        )

    def _lost(self) -> list[str]:
        """What was accepted and is not there; nothing, as it has to be."""
        site = self._site
        lost = []
        try:
            until(lambda: site.heard("after.flac"), "the file is taken", READY_S)
            site.look()
            until(lambda: site.ledger("inbox.raw")["held"] == 0, "the file is heard", READY_S)
            until(lambda: not site.ledger("inbox.segments")["held"], "it is sent", READY_S)
        except AssertionError as error:
            lost.append(str(error))
        if (now := site.ledger("inbox.segments")["produced"]) != 2 * self._segments:
            lost.append(f"{now} of {2 * self._segments} segments")
        site.callers.stop()
        if silent := site.callers.outcomes["silence"]:
            lost.append(f"{silent} calls without a word")
        return [*lost, *self._lost_jobs(), *self._unbalanced()]

    def _lost_jobs(self) -> list[str]:
        site = self._site

        def ended() -> bool:
            with suppress(HoldfastError):
                return all(
                    site.ask(f"/api/v1/jobs/{job}")["state"] in JOB_ENDS
                    for job in site.callers.jobs
                )
            return False

        try:
            until(ended, "all jobs have ended", READY_S)
        except AssertionError as error:
            return [str(error)]
        return []

    def _unbalanced(self) -> list[str]:
        site, found = self._site, list(self._site.judge.faults)
        ledger, epoch = site.ask("/api/v1/status")["ledger"], site.status["store"]["epoch"]
        for stream, one in ledger.items():
            if one["produced"] != one["delivered"] + one["held"] + sum(one["dropped"].values()):
                found.append(f"{stream}: {one}")
            if stream.endswith(".segments") and any(one["dropped"].values()):
                found.append(f"{stream}: {one['dropped']}")
            stored = site.judge.count(epoch, stream)
            if not stream.endswith(".raw") and stored < one["delivered"]:
                found.append(f"{stream}: {one['delivered']} delivered, {stored} stored")
        return [*found, *self._verified()]

    def _verified(self) -> list[str]:
        site = self._site
        site.ask(VERIFY, {"deep": False})
        until(lambda: not site.ask(VERIFY)["running"], "the verify ends", READY_S)
        return [str(one) for one in site.ask(VERIFY)["report"]["faults"]]


def tried(fault: Fault, folder: Path, library: Path | None) -> Outcome:
    """One fault, in a folder of its own."""
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    if fault.part == "clock":
        (folder / "clock").write_bytes(bytes(8))
        environment |= {"LD_PRELOAD": str(library), "HOLDFAST_CLOCK": str(folder / "clock")}
    if fault.part == "source":
        arecord(folder)
    with ExitStack() as stack:
        disk = None
        if fault.disk:
            content = repository(folder / "content") if fault.disk == "models" else None
            disk = stack.enter_context(Disk(folder / "disk", content))
        site = Site(folder, fault.settings, environment, disk, fault.disk)
        with told(site):
            stack.enter_context(site)
            return Trial(fault, site).run()


def shown(outcomes: list[Outcome]) -> str:
    """A table for people."""
    rows = [("part", "fault", "seen by", "seen s", "back s", "lost", "live sound dropped, counted")]
    rows += [
        (
            one.fault.part,
            one.fault.name,
            one.seen or "nobody, and it need not be",
            _seconds(one.seen_s),
            _seconds(one.back_s),
            "; ".join(one.lost) or "nothing",
            one.counted or "none",
        )
        for one in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def slug(fault: Fault) -> str:
    """Its name as a file's, or a figure's."""
    words = f"{fault.part} {fault.name}".lower().replace("+", "plus ").replace("-", "minus ")
    return re.sub(r"[^a-z0-9]+", "_", words).strip("_")


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def judged(outcomes: list[Outcome]) -> report.Report:
    """Raises AssertionError where something was lost, did not come back, or was not seen."""
    to_be_seen = [one for one in outcomes if one.fault.unseen_s >= SEEN_S]
    wrong = [one for one in outcomes if one.lost or one.back_s is None]
    wrong += [one for one in to_be_seen if one.seen_s is None]
    if wrong:
        raise AssertionError(shown(wrong))
    figures = {"faults": float(len(outcomes))}
    for one in outcomes:
        name = slug(one.fault)
        figures |= {f"{name}_seen_s": one.seen_s} if one.seen_s is not None else {}
        figures[f"{name}_back_s"] = one.back_s or 0.0
    ratios = {}
    if to_be_seen:  # one that was chosen may be of those that nobody need see
        slowest = max(one.seen_s or 0.0 for one in to_be_seen)
        ratios["seen_vs_30_s"] = report.Ratio.once(slowest / SEEN_S, 1.0)
    return report.Report.of("faults", ratios, figures)


def all_tried(chosen: list[Fault], root: Path, library: Path | None) -> list[Outcome]:
    """Each with an agent of its own, several at once: most of the time is waiting."""

    def one(fault: Fault) -> Outcome:
        folder = root / slug(fault)
        folder.mkdir(parents=True)
        try:
            found = tried(fault, folder, library)
        except AssertionError as error:  # the others go on
            found = Outcome(fault, lost=(str(error),))
        print(shown([found]).splitlines()[1], file=sys.stderr)
        return found

    with ThreadPoolExecutor(AT_ONCE) as crew:
        return list(crew.map(one, chosen))


def main() -> None:
    parser = report.options(__doc__)
    parser.add_argument("--only", default="", help="faults whose part and name have this in them")
    parser.add_argument("--keep", type=Path, help="a folder for what the agents leave, their logs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-faults-") as name:
        root = Path(name)
        library = compiled(root)
        if library is None:
            print("no C compiler: the clock stays as it is", file=sys.stderr)
        chosen = [
            one
            for one in FAULTS
            if asked.only in f"{one.part} {one.name}"
            and (asked.full or asked.only or one.quick)
            and (library or one.part != "clock")
        ]
        outcomes = all_tried(chosen, asked.keep or root, library)
    if not asked.json:
        print(shown(outcomes), end="\n\n")
    judged(outcomes).show(as_json=asked.json)


if __name__ == "__main__":
    main()
