"""Reset hooks: real programs and the real root daemon, a GPIO chip whose kernel is played."""

import errno
import os
import struct
from pathlib import Path

import pytest

from agent import config
from agent.errors import HoldfastError
from agent.host.resets import gpio
from agent.host.resets.gpio import GpioLine
from agent.host.resets.programs import HOOKS_MAX
from agent.host.resets.resets import ResetHook, Resets
from agent.host.root.client import Root
from tests.host.root.played import Played
from tests.outside import alive, running, until

CHIP = Path("/dev/null")  # a device that anybody may open


class Shop:
    """A folder of hooks, each of which tells that it was run."""

    def __init__(self, folder: Path) -> None:
        self.hooks = folder / "reset.d"
        self.hooks.mkdir()
        self.told = folder / "told"
        self.settings = {"reset_hooks": str(self.hooks), "reset_timeout_s": 0.3}

    def hook(self, name: str, then: str = "exit 1") -> Path:
        path = self.hooks / name
        path.write_text(f'#!/bin/sh\necho "{name} $* $HOLDFAST_WHY" >> {self.told}\n{then}\n')
        path.chmod(0o755)
        return path

    def resets(self, **settings: object) -> Resets:
        whole = config.Watchdog(**{**self.settings, **settings})  # type: ignore[arg-type]
        return Resets(whole, Root(Path(whole.root_socket) if whole.root_socket else None))

    def run(self) -> list[str]:
        return self.told.read_text().splitlines() if self.told.exists() else []


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def outcome(resets: Resets) -> str:
    with pytest.raises(HoldfastError, match="the machine is still there") as error:
        await resets.reset("the store hangs")
    return str(error.value)


async def test_all_are_tried_in_order_and_told_why(shop: Shop) -> None:
    shop.hook("20-second")
    shop.hook("10-first")
    command = shop.hook("../command.sh")
    said = await outcome(shop.resets(reset_command=[str(command), "off", "on"]))
    assert shop.run() == [
        "10-first reset the store hangs",
        "20-second reset the store hangs",
        "../command.sh off on the store hangs",
    ]
    assert said.index("10-first") < said.index("20-second") < said.index("command: ")
    assert "ended with status 1" in said


async def test_one_that_hangs_is_ended_with_what_it_began_and_the_next_one_comes(
    shop: Shop,
) -> None:
    pids = shop.told.with_name("pids")
    shop.hook("10-hangs", f"sleep 600 & echo $! $$ > {pids}; wait")
    shop.hook("20-next")
    said = await outcome(shop.resets())
    assert "10-hangs: no effect within 0.3 s" in said
    assert [one.partition(" ")[0] for one in shop.run()] == ["10-hangs", "20-next"]
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), "both ended")


async def test_one_that_did_it_and_nothing_came_of_it_is_told(shop: Shop) -> None:
    shop.hook("10-good", "exit 0")
    assert "10-good: no effect" in await outcome(shop.resets())


async def test_without_a_hook_that_is_said(shop: Shop) -> None:
    assert "no reset hook is configured" in await outcome(shop.resets())
    shop.hooks.rmdir()
    assert "no reset hook is configured" in await outcome(shop.resets())
    assert await shop.resets().seen() == []


async def test_a_dry_run_shows_all_and_does_nothing(shop: Shop) -> None:
    first = shop.hook("10-first")
    command = ["/bin/echo", "password"]
    line = config.Gpio(chip=str(CHIP), line=3, active="low")
    resets = shop.resets(reset_command=command, reset_gpio=line, root_socket="/nowhere/root.sock")
    seen = await resets.seen()
    assert [one.hook for one in seen] == [str(first), "command", "gpio", "sysrq"]
    assert seen[0] == ResetHook(str(first), f"would run {first}")
    assert seen[1].would == "would run /bin/echo"
    assert seen[2].would == "would hold line 3 of /dev/null low for 1 s"
    assert "no root daemon answers" in seen[3].trouble
    assert shop.run() == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.chmod(0o775), "written by others"),
        (lambda path: path.chmod(0o757), "written by others"),
        (lambda path: path.chmod(0o644), "cannot be run"),
        (lambda path: os.chown(path, 4711, -1), "belongs to uid 4711"),
        (lambda path: path.parent.chmod(0o777), "reset.d can be written by others"),
        (lambda path: os.chown(path.parent, 4711, -1), "reset.d belongs to uid 4711"),
        (lambda path: path.rename(path.with_name("10-hook~")), "its name"),
        (lambda path: path.rename(path.with_name("10-hook.dpkg-old")), "its name"),
        (lambda path: (path.unlink(), path.symlink_to("/bin/true")), "not a file"),
        (lambda path: (path.unlink(), path.mkdir()), "not a file"),
    ],
)
async def test_what_others_may_write_is_not_run(shop: Shop, spoil: object, told: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    assert callable(spoil)
    spoil(shop.hook("10-hook"))
    (seen,) = await shop.resets().seen()
    assert told in seen.trouble
    assert seen.remedy
    assert told in await outcome(shop.resets())
    assert shop.run() == []


async def test_a_folder_with_too_much_in_it_costs_no_other_hook(shop: Shop) -> None:
    for number in range(HOOKS_MAX + 1):
        shop.hook(f"{number}")
    command = shop.hook("../command")
    said = await outcome(shop.resets(reset_command=[str(command)]))
    assert f"more than {HOOKS_MAX}" in said
    assert shop.run() == ["../command  the store hangs"]
    seen = await shop.resets(reset_command=[str(command)]).seen()
    assert [one.hook for one in seen] == [str(shop.hooks), "command"]


async def test_sysrq_is_pressed_by_the_root_daemon(shop: Shop, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the root daemon needs root")
    played = Played(tmp_path)
    with running(played):
        resets = shop.resets(root_socket=str(played.socket))
        (seen,) = await resets.seen()
        assert seen.would == f"would write s, u, b to {tmp_path}/sysrq, by the root daemon"
        assert played.pressed() == ""
        assert "sysrq: no effect" in await outcome(resets)
        until(lambda: played.pressed() == "b", "the machine is reset")


class Kernel:
    """The line's end of the ioctl."""

    def __init__(self, fault: int = 0) -> None:
        self.asked: list[bytes] = []
        self.fault = fault
        self.held, self._ours = os.pipe()

    def __call__(self, _: int, number: int, asked: bytes) -> bytes:
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
        assert number == gpio.REQUEST
        self.asked.append(asked)
        return asked[:-4] + struct.pack("i", os.dup(self._ours))

    def let_go(self) -> bool:
        """Whether nobody holds the line any more."""
        os.close(self._ours)
        with os.fdopen(self.held, "rb") as pipe:
            return pipe.read() == b""


@pytest.mark.parametrize(("low", "flags"), [(False, 1 << 3), (True, 1 << 1 | 1 << 3)])
async def test_a_line_is_held_active_and_let_go(*, low: bool, flags: int) -> None:
    kernel = Kernel()
    await GpioLine(CHIP, 17, 0.01, low=low, ioctl=kernel).pull("")
    (asked,) = kernel.asked
    assert len(asked) == 592  # sizeof(struct gpio_v2_line_request)
    assert struct.unpack_from("=2I", asked) == (17, 0)
    assert struct.unpack_from("=QI", asked, 288) == (flags, 1)
    assert struct.unpack_from("=IIQQ", asked, 320) == (2, 0, 1, 1)
    assert struct.unpack_from("=I", asked, 560) == (1,)
    assert kernel.let_go()


async def test_a_line_that_somebody_holds_is_named(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="line 17: Device or resource busy"):
        await GpioLine(CHIP, 17, 0.01, low=False, ioctl=Kernel(errno.EBUSY)).pull("")
    (tmp_path / "chip").touch()
    with pytest.raises(HoldfastError, match="it is no device"):
        await GpioLine(tmp_path / "chip", 1, 0.01, low=False).look()
    with pytest.raises(HoldfastError, match="No such file"):
        await GpioLine(tmp_path / "none", 1, 0.01, low=False).look()
