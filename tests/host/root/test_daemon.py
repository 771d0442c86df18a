"""The root daemon as a real process, over its real socket; what it would do to the machine is
played by files of the test."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from agent.host.root.acts import SYSRQ
from agent.host.root.daemon import CONNECTIONS_MAX, ORDERS_MAX
from agent.host.root.forms import LINE_BYTES_MAX, MODE_MAX, order_of
from tests.host.lowly import NOBODY, as_nobody
from tests.host.root.played import Played
from tests.outside import DEADLINE_S, ROOT, running, until

STRANGER = NOBODY - 1
SILENT = 1000


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    if os.geteuid() != 0:
        pytest.skip("the root daemon needs root")
    made = Played(tmp_path)
    with running(made):
        yield made


def called(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(path))  # waits for its turn
    line.settimeout(DEADLINE_S)
    return line


def ask(path: Path, text: bytes) -> dict[str, Any]:
    with called(path) as line:
        with suppress(BrokenPipeError):  # it was refused before it had spoken
            line.sendall(text + b"\n")
        found: dict[str, Any] = msgspec.json.decode(answer(line))
        return found


def answer(line: socket.socket) -> bytes:
    whole = b""
    with suppress(ConnectionResetError):  # it was refused before all that was sent was read
        while came := line.recv(4096):
            whole += came
    return whole


def test_the_machine_is_rebooted_reset_and_set_to_a_mode(played: Played) -> None:
    assert "done" in ask(played.socket, b'{"verb":"reboot"}')
    assert "done" in ask(played.socket, b'{"verb":"nvpmodel","mode":3}')
    for act in ("build", "switch", "confirm", "back"):
        assert "done" in ask(played.socket, f'{{"verb":"slots","act":"{act}"}}'.encode())
    slots = ["build", "slots switch", "slots confirm", "slots back"]
    assert played.called() == ["reboot", "-m 3", *slots]
    assert played.pressed() == ""
    assert ask(played.socket, b'{"verb":"reset"}') == {"done": "the machine is reset"}
    until(lambda: played.pressed() == "b", "the last one is the reset")
    log = played.log.read_text()
    for verb in ("reboot", "nvpmodel", "reset"):
        assert f'orders {{"verb":"{verb}"' in log


def test_sync_and_read_only_come_before_the_reset(played: Played) -> None:
    (played.folder / "sysrq").unlink()
    os.mkfifo(played.folder / "sysrq")
    pressed = os.open(played.folder / "sysrq", os.O_RDONLY | os.O_NONBLOCK)
    try:
        ask(played.socket, b'{"verb":"reset"}')
        whole = b""

        def all_pressed() -> bool:
            nonlocal whole
            with suppress(BlockingIOError):
                whole += os.read(pressed, 10)
            return len(whole) == len(SYSRQ)

        until(all_pressed, "all are pressed")
        assert whole == b"sub"
    finally:
        os.close(pressed)


def test_a_dry_run_does_nothing_and_says_what_would_be_done(played: Played) -> None:
    said = ask(played.socket, b'{"verb":"reset","dry_run":true}')
    assert said == {"done": f"would write s, u, b to {played.folder}/sysrq"}
    said = ask(played.socket, b'{"verb":"nvpmodel","mode":2,"dry_run":true}')
    assert said == {"done": f"would run {played.folder}/program -m 2"}
    assert (played.called(), played.pressed()) == ([], "")


def test_what_this_machine_has_not_is_refused(played: Played) -> None:
    (played.folder / "program").unlink()
    for text in (b'{"verb":"nvpmodel","mode":0}', b'{"verb":"nvpmodel","mode":0,"dry_run":true}'):
        assert "No such file" in ask(played.socket, text)["error"]


def test_the_agents_user_is_heard_and_no_other(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, here = b'{"verb":"reboot","dry_run":true}', Path(played.socket.name)
    played.folder.chmod(0o755)
    monkeypatch.chdir(played.folder)  # for those who may not go through pytest's folders
    assert "done" in as_nobody(lambda: ask(here, text))
    played.socket.chmod(0o666)  # as if somebody had opened it to all

    refused = as_nobody(lambda: ask(here, b'{"verb":"reboot"}'), STRANGER)
    assert "only the agent" in str(refused["error"])
    assert played.called() == []
    assert f"uid {STRANGER} is not the agent's" in played.log.read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"verb":"shell"}', "nvpmodel, reboot, reset"),
        (b"{}", "missing required field `verb`"),
        (b'{"verb":"nvpmodel"}', "`mode`"),
        (b'{"verb":"nvpmodel","mode":-1}', ">= 0"),
        (f'{{"verb":"nvpmodel","mode":{MODE_MAX + 1}}}'.encode(), f"<= {MODE_MAX}"),
        (b'{"verb":"nvpmodel","mode":"1; reboot"}', "Expected `int`"),
        (b'{"verb":"reboot","force":true}', "unknown field"),
        (b'{"verb":"slots"}', "`act`"),
        (b'{"verb":"slots","act":"start"}', "Invalid enum value"),
        (b'{"verb":"slots","act":"build","package":"/tmp/x"}', "unknown field"),
        (b"", "no order"),
        (b"\xff", "no order"),
        (b"[" * LINE_BYTES_MAX, "no order"),
        (b"x" * (LINE_BYTES_MAX + 9), f"{LINE_BYTES_MAX} bytes"),
    ],
)
def test_what_is_no_order_is_refused_and_says_why(played: Played, text: bytes, told: str) -> None:
    assert told in ask(played.socket, text)["error"]
    assert played.called() == []


@how(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=2 * LINE_BYTES_MAX))
def test_no_line_ends_it(played: Played, text: bytes) -> None:
    with called(played.socket) as line, suppress(BrokenPipeError):
        line.sendall(text)
        line.shutdown(socket.SHUT_WR)
        answered = answer(line)
        assert not answered or "error" in msgspec.json.decode(answered)
    assert played.called() == []
    assert played.pressed() == ""


@how(max_examples=50)
@given(st.binary(max_size=LINE_BYTES_MAX) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_an_order_or_a_reason(text: bytes) -> None:
    with pytest.raises(ValueError, match="the verbs are"):
        order_of(text + b"}")


def test_the_silent_hold_up_nobody(played: Played) -> None:
    with ExitStack() as silent:
        for _ in range(SILENT):
            silent.enter_context(called(played.socket))
        assert "done" in ask(played.socket, b'{"verb":"reboot"}')
        assert played.open_files() < 2 * CONNECTIONS_MAX, "the oldest gave way"
    assert played.called() == ["reboot"]


def test_who_is_silent_is_let_go(played: Played) -> None:
    with ExitStack() as silent:
        lines = [silent.enter_context(called(played.socket)) for _ in range(CONNECTIONS_MAX + 1)]
        assert [line.recv(1) for line in lines] == [b""] * len(lines), "no byte, and closed"


def test_a_line_may_come_in_pieces(played: Played) -> None:
    with called(played.socket) as line:
        for at in range(len(text := b'{"verb":"reboot"}\n')):
            line.send(text[at : at + 1])
        assert b"done" in answer(line)


def test_a_program_that_hangs_is_killed_and_holds_up_no_other(played: Played) -> None:
    (played.folder / "do").write_text('if [ "$1" = -m ]; then echo busy; sleep 600; fi\n')
    with called(played.socket) as hangs:
        hangs.sendall(b'{"verb":"nvpmodel","mode":1}\n')
        until(lambda: played.called() == ["-m 1"], "it runs")
        said = ask(played.socket, b'{"verb":"nvpmodel","mode":2}')
        assert said["error"] == "nvpmodel is under way already"
        assert "done" in ask(played.socket, b'{"verb":"reboot"}')
        killed = answer(hangs)
        assert b"did not end" in killed
        assert b"busy" in killed
    (played.folder / "do").unlink()
    until(lambda: "status -9" in played.log.read_text(), "it was waited for")
    assert "done" in ask(played.socket, b'{"verb":"nvpmodel","mode":2}')


def test_a_program_that_fails_is_told_with_its_words(played: Played) -> None:
    (played.folder / "do").write_text("echo NVPM ERROR: no such mode; exit 7\n")
    error = ask(played.socket, b'{"verb":"nvpmodel","mode":1}')["error"]
    assert "status 7: NVPM ERROR: no such mode" in error


def test_a_verb_too_often_is_refused_and_costs_no_other_its_turn(played: Played) -> None:
    text = b'{"verb":"reboot","dry_run":true}'
    said = [ask(played.socket, text) for _ in range(ORDERS_MAX + 1)]
    assert ["done" in one for one in said] == [True] * ORDERS_MAX + [False]
    for _ in range(2 * ORDERS_MAX):
        ask(played.socket, b"nonsense")
    assert played.log.read_text().count("refused") == ORDERS_MAX, "the journal is spared"
    assert "done" in ask(played.socket, b'{"verb":"reboot"}')


def test_one_daemon_serves_and_what_a_dead_one_left_is_no_obstacle(played: Played) -> None:
    second, here = played.command, {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(second, capture_output=True, env=here, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert b"another daemon serves" in ended.stderr
    played.kill()
    played.start()
    assert "done" in ask(played.socket, b'{"verb":"reboot","dry_run":true}')
    assert played.socket.stat().st_mode & 0o777 == 0o660


def test_it_loads_no_more_than_it_needs() -> None:
    from tests.test_contracts import loaded_by

    modules = loaded_by("agent.host.root.command")
    ours = {one for one in modules if one.startswith("agent")}
    assert ours == {"agent", "agent.host", "agent.host.root"} | {
        f"agent.host.root.{one}" for one in ("acts", "command", "daemon", "forms")
    }
    assert not modules & {"asyncio", "logging", "subprocess", "ssl", "numpy", "yaml", "ctypes"}
