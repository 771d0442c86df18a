"""The faults, from outside: signals, control groups, disks, sockets, the clock; two by the
watchdog's own test.

A way is a context: entered, the fault is there; left, it is over.
"""

import ctypes
import os
import resource
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import soundfile

from agent.errors import HoldfastError
from bench.faults_site import Site
from tests.host.grouped import Group, freezing
from tests.outside import ROOT

TEN_YEARS_S = 315_576_000
STUCK_S = 3600.0
LEAK_BYTES = 512 << 20
WAL, FILES = "holdfast.db-wal", "holdfast.db*"
Way = Callable[[Site], AbstractContextManager[None]]


class Fault(NamedTuple):
    """One way in which one part breaks.

    `lasts_s` is how long it goes on after it was seen (none: it is a matter of a moment), and
    `unseen_s` how long it is waited for that (less than 30: it may be borne, unseen). `disk`: what
    lies on a disk that can be broken.
    """

    part: str
    name: str
    way: Way
    lasts_s: float | None = None
    settings: Mapping[str, Any] = {}
    disk: str = ""
    quick: bool = False
    unseen_s: float = 60.0


@contextmanager
def struck(site: Site, domain: str, sign: signal.Signals) -> Iterator[None]:
    """A signal to a domain's process."""
    os.kill(site.pid_of(domain), sign)
    yield


@contextmanager
def frozen(site: Site, domain: str) -> Iterator[None]:
    """Its process does not run, and cannot be killed: as in a driver that does not come back."""
    with freezing(site.pid_of(domain)):
        yield


@contextmanager
def starved(site: Site, domain: str) -> Iterator[None]:
    """Its process has a hundredth of a processor."""
    group = Group("cpu", site.pid_of(domain))
    group.write("cpu.cfs_period_us", 1_000_000)
    group.write("cpu.cfs_quota_us", 10_000)
    group.enter()
    yield
    group.leave()


@contextmanager
def unreadable(site: Site) -> Iterator[None]:
    """A process that begins reads its model from a disk that never answers: a true D state."""
    with disk_rule(site, "model.onnx", "read", delay_s=STUCK_S):
        os.kill(site.pid_of("calls"), signal.SIGKILL)
        yield


@contextmanager
def unread_folder(site: Site) -> Iterator[None]:
    """Whoever looks into the folder of recordings, or at one, waits for ever."""
    with disk_rule(site, "*", "getattr", delay_s=STUCK_S):
        yield


@contextmanager
def asked(site: Site, model: str, name: str, number: int) -> Iterator[None]:
    """A call that its process does not get over; what its caller is told is not the matter."""
    tensor = {"name": name, "shape": [1], "datatype": "INT64", "data": [number]}

    def call() -> None:
        with suppress(HoldfastError):
            site.ask(f"/v2/models/{model}/infer", {"inputs": [tensor]})

    threading.Thread(target=call, daemon=True).start()
    yield


@contextmanager
def zygote(site: Site, sign: signal.Signals) -> Iterator[None]:
    """Nothing can be forked, and a process is wanted."""
    os.kill(_child(site, "hf-zygote"), sign)
    os.kill(site.pid_of("calls"), signal.SIGKILL)
    yield


def _child(site: Site, name: str) -> int:
    family = psutil.Process(site.unit.pid).children(recursive=True)
    return next(one.pid for one in family if one.name() == name)


@contextmanager
def disk_rule(site: Site, match: str, operation: str, **how: Any) -> Iterator[None]:
    """What the disk does to some calls."""
    assert site.disk
    site.disk.rule(match, [operation], **how)
    yield
    site.disk.clear()


@contextmanager
def broker(site: Site, sign: signal.Signals) -> Iterator[None]:
    """The far end is gone; or the kernel takes connections, and nobody ever says anything."""
    os.kill(site.broker.pid, sign)
    yield
    if sign == signal.SIGKILL:
        site.broker.kill()
        site.broker.start()
    else:
        os.kill(site.broker.pid, signal.SIGCONT)


@contextmanager
def agent(site: Site, sign: signal.Signals) -> Iterator[None]:
    """A signal to the agent itself."""
    os.kill(site.unit.pid, sign)
    yield


@contextmanager
def hung(site: Site, part: str) -> Iterator[None]:
    """A loop of the agent's stands still: what `holdfast watchdog test` does."""
    site.ask("/api/v1/watchdog/test", {"part": part})
    yield


@contextmanager
def inside(site: Site, what: str) -> Iterator[None]:
    """Something in the agent's own process (bench/faulty)."""
    site.fault.write_text(what)
    os.kill(site.unit.pid, signal.SIGUSR2)
    yield


@contextmanager
def no_descriptors(site: Site) -> Iterator[None]:
    """The agent may open nothing more, and its doors are knocked at."""
    pid = site.unit.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    now = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (now, before[1]))
    os.kill(site.pid_of("calls"), signal.SIGKILL)
    yield
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def unread(site: Site) -> Iterator[None]:
    """Nobody reads the log, its pipe is full, and there is something to say."""
    site.unit.fill()
    os.kill(site.pid_of("calls"), signal.SIGKILL)
    yield
    site.unit.reads = True


@contextmanager
def device(site: Site, word: str) -> Iterator[None]:
    """What arecord does from now on (its stand-in reads the word), and no longer."""
    (site.folder / "arecord.word").write_text(word)
    yield
    (site.folder / "arecord.word").write_text("")


@contextmanager
def frozen_arecord(site: Site) -> Iterator[None]:
    """No signal reaches arecord, as where its driver does not come back."""
    with freezing(_child(site, "arecord")):
        yield


@contextmanager
def clock(site: Site, jump_s: int, then: Way) -> Iterator[None]:
    """Wall time jumps, while something else breaks."""
    with (site.folder / "clock").open("r+b") as file:  # it is mapped: to be kept
        file.write(struct.pack("q", jump_s))
    with then(site):
        yield


def compiled(folder: Path) -> Path | None:
    """The library that bends the clock; none where there is no compiler."""
    library = folder / "clock.so"
    source = Path(__file__).parent / "faulty" / "clock.c"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    ctypes.CDLL(str(library))
    return library


def arecord(folder: Path) -> None:
    """A stand-in for it on the agent's path: plays a recording, and does what a word says."""
    pcm, _ = soundfile.read(ROOT / "samples" / "fan.flac", dtype="int16")
    (folder / "bin").mkdir()
    (folder / "arecord.raw").write_bytes(pcm.tobytes())
    (folder / "arecord.word").write_text("")
    program = folder / "bin" / "arecord"
    program.write_text(ARECORD.format(folder=folder))
    program.chmod(0o755)


ARECORD = """#!/usr/bin/python3 -ISB
import itertools, sys, time
sound = open("{folder}/arecord.raw", "rb").read()
piece = 3200  # a tenth of a second
out = sys.stdout.buffer
for at in itertools.cycle(range(0, len(sound) - piece, piece)):
    word = open("{folder}/arecord.word").read()
    if word == "silent":
        time.sleep(0.1)
        continue
    if word == "ends":
        sys.exit("arecord: read error: No such device")
    out.write(sound[at : at + piece])
    out.flush()
    if word != "floods":
        time.sleep(0.1)
"""


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
STOPPED = partial(struck, domain="calls", sign=STOP)
FSYNC = partial(disk_rule, match=FILES, operation="fsync")
C_CALL = partial(inside, what="call_c")
ENDLESS = partial(asked, model="loop", name="turns", number=1 << 40)
GREEDY = partial(asked, model="hog", name="bytes", number=LEAK_BYTES)
LOOPS = {"domains": {"loops": {"models": ["loop"], "threads": 1}}}
HOGS = {"domains": {"hogs": {"models": ["hog"], "threads": 1, "memory_bytes_max": 192 << 20}}}
MICROPHONE = {"hall": {"kind": "microphone", "rate_hz": 16_000, "retry_s": 1}}
FAULTS = [
    # the processes of a domain
    Fault("domain", "killed", partial(struck, domain="calls", sign=KILL), quick=True),
    Fault("domain", "stopped (SIGSTOP)", STOPPED, quick=True),
    Fault("domain", "that hears: stopped", partial(struck, domain="audio", sign=STOP)),
    Fault(
        "domain", "no signal reaches it (frozen)", partial(frozen, domain="calls"), 10, quick=True
    ),
    Fault("domain", "D state in a read of its model", unreadable, 60, disk="models"),
    Fault("domain", "loops: 100 % CPU", ENDLESS, settings=LOOPS),
    Fault("domain", "leaks, to its limit", GREEDY, settings=HOGS),
    Fault("domain", "slowed: 1 % CPU", partial(starved, domain="calls"), 10, unseen_s=20),
    Fault("domain", "killed, and none is forked: zygote killed", partial(zygote, sign=KILL)),
    Fault("domain", "killed, and none is forked: zygote stopped", partial(zygote, sign=STOP)),
    # the store's disk
    Fault(
        "store", "refuses each fsync (EIO)", partial(FSYNC, errno=5), 5, disk="store", quick=True
    ),
    Fault(
        "store", "each fsync takes 2 s", partial(FSYNC, delay_s=2), 10, disk="store", unseen_s=20
    ),
    Fault("store", "each fsync takes 12 s", partial(FSYNC, delay_s=12), 60, disk="store"),
    Fault("store", "an fsync never returns", partial(FSYNC, delay_s=STUCK_S), 45, disk="store"),
    # what is heard
    Fault("source", "arecord ends", partial(device, word="ends"), 5, MICROPHONE, quick=True),
    Fault("source", "arecord gives nothing", partial(device, word="silent"), 5, MICROPHONE),
    Fault(
        "source",
        "arecord gives without end",
        partial(device, word="floods"),
        10,
        MICROPHONE,
        unseen_s=10,
    ),
    Fault("source", "arecord sits in its driver (frozen)", frozen_arecord, 10, MICROPHONE),
    Fault("source", "a read of the folder never returns", unread_folder, 40, disk="inbox"),
    Fault("source", "its listener hangs", partial(hung, part="source hall")),
    # the link
    Fault("uplink", "broker killed", partial(broker, sign=KILL), 5, quick=True),
    Fault("uplink", "broker silent (stopped)", partial(broker, sign=STOP), 20),
    Fault("uplink", "it hangs", partial(hung, part="uplink")),
    # the agent itself
    Fault("loop", "in a C call that holds the lock", C_CALL),
    Fault("loop", "turns for ever, in Python", partial(inside, what="turn")),
    Fault("agent", "killed", partial(agent, sign=KILL), quick=True),
    Fault("agent", "stopped (SIGSTOP)", partial(agent, sign=STOP)),
    Fault("agent", "leaks", partial(inside, what="take"), unseen_s=60),
    Fault("agent", "no descriptor left, a process killed", no_descriptors, 10),
    Fault("agent", "its log is not read, a process killed", unread, 10),
    # wall time jumps, and something breaks
    Fault(
        "clock", "+10 years, a process stopped", partial(clock, jump_s=TEN_YEARS_S, then=STOPPED)
    ),
    Fault(
        "clock", "-10 years, a process stopped", partial(clock, jump_s=-TEN_YEARS_S, then=STOPPED)
    ),
    Fault(
        "clock", "+10 years, a C call in the loop", partial(clock, jump_s=TEN_YEARS_S, then=C_CALL)
    ),
    Fault(
        "clock",
        "-10 years, broker killed",
        partial(clock, jump_s=-TEN_YEARS_S, then=partial(broker, sign=KILL)),
        5,
    ),
]
