"""Two network namespaces with a cable between them: packets are lost, held up and refused for real.

`near` is the device's side, `far` the cloud's. Needs root, iproute2 and nftables.
"""

import itertools
import os
import subprocess
from typing import Self

import pytest

from tests.outside import program

_NUMBERS = itertools.count()
TABLE = "holdfast"


class Cable:
    """Laid with `with`; whatever happens, the namespaces are gone afterwards."""

    def __init__(self) -> None:
        """Skips the test where this user may not lay one."""
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        self._ip = program("ip", "iproute2")
        self._tc = program("tc", "iproute2")
        self._nft = program("nft", "nftables")
        number = next(_NUMBERS)
        name = f"hf{os.getpid()}-{number}"
        self._near, self._far = f"{name}-near", f"{name}-far"
        net = f"198.18.{os.getpid() % 250}"  # 198.18/15 is kept for tests
        self._near_ip, self.far_ip = (f"{net}.{4 * (number % 60) + i}" for i in (1, 2))
        self.near = [self._ip, "netns", "exec", self._near]  # before a command: runs it there
        self.far = [self._ip, "netns", "exec", self._far]

    def __enter__(self) -> Self:
        for asked in (["netns", "add", self._near], ["-n", self._near, "link"]):  # in a chroot: no
            done = subprocess.run([self._ip, *asked], capture_output=True, text=True, check=False)
            if done.returncode:
                self.__exit__()
                pytest.skip(f"no network namespace is to be had: {done.stderr.strip()}")
        try:
            self._lay()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _lay(self) -> None:
        self._do(self._ip, "netns", "add", self._far)
        pair = ["veth", "peer", "name", "eth0", "netns", self._far]
        self._do(self._ip, "link", "add", "eth0", "netns", self._near, "type", *pair)
        for space, address in ((self._near, self._near_ip), (self._far, self.far_ip)):
            inside = [self._ip, "-n", space]
            self._do(*inside, "addr", "add", f"{address}/30", "dev", "eth0")
            self._do(*inside, "link", "set", "eth0", "up")
            self._do(*inside, "link", "set", "lo", "up")
        for side in (self.near, self.far):
            self._do(*side, self._nft, "add", "table", "inet", TABLE)
            for hook in ("input", "output"):
                chain = f"{{ type filter hook {hook} priority 0 ; }}"
                self._do(*side, self._nft, "add", "chain", "inet", TABLE, hook, chain)

    def __exit__(self, *_: object) -> None:
        for space in (self._near, self._far):  # the cable goes with them
            subprocess.run([self._ip, "netns", "del", space], capture_output=True, check=False)

    def narrow(self, rate_bit: str) -> None:
        """No more than this goes through, each way (as tc has it: `200kbit`); more is dropped."""
        for side in (self.near, self.far):
            self._do(
                *(*side, self._tc, "qdisc", "replace", "dev", "eth0", "root", "tbf"),
                *("rate", rate_bit, "burst", "8kb", "latency", "400ms"),
            )

    def widen(self) -> None:
        """As fast as it goes."""
        for side in (self.near, self.far):
            subprocess.run(
                [*side, self._tc, "qdisc", "del", "dev", "eth0", "root"],
                capture_output=True,
                check=False,
            )

    def drop(self, *match: str, ways: tuple[str, ...] = ("input", "output")) -> None:
        """Drop every packet that matches (none: each), silently: for TCP, the link is half-open."""
        for way in ways:
            self._do(*self.near, self._nft, "add", "rule", "inet", TABLE, way, *match, "drop")

    def refuse(self, port: int) -> None:
        """Answer each packet to this port with a reset."""
        rule = ["tcp", "dport", str(port), "reject", "with", "tcp", "reset"]
        self._do(*self.far, self._nft, "add", "rule", "inet", TABLE, "input", *rule)

    def mend(self) -> None:
        """Let everything through again."""
        for side in (self.near, self.far):
            self._do(*side, self._nft, "flush", "table", "inet", TABLE)

    def _do(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
