"""The root daemon's loop: who is let in, what he asks, and when he is answered.

One thread, which waits for nobody: not for a line that does not come, not for a program that does
not end. Only the agent's user and root are heard; the kernel says who calls (SO_PEERCRED).

Limits: CONNECTIONS_MAX connections, each for SILENT_S until its line is there, the oldest giving
way; LINE_BYTES_MAX of a line; of each verb ORDERS_MAX in ORDERS_S, and one at a time.
"""

import math
import selectors
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

from agent.host.root import acts
from agent.host.root.acts import Program, Ways
from agent.host.root.forms import LINE_BYTES_MAX, Answer, Done, Order, Refused, line_of, order_of

CONNECTIONS_MAX = 16
SILENT_S = 2.0
ORDERS_MAX, ORDERS_S = 6, 60.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Caller(NamedTuple):
    """A connection whose line has not come yet."""

    pid: int
    until_s: float
    line: bytearray


class Work(NamedTuple):
    """A program at work, and who waits for what it says."""

    verb: str
    program: Program
    line: socket.socket


class Daemon:
    """`run` serves until the process ends."""

    def __init__(self, listener: socket.socket, uid: int, ways: Ways) -> None:
        """`uid` is the agent's user, who is heard beside root."""
        listener.setblocking(False)
        self._listener = listener
        self._allowed = {0, uid}
        self._ways = ways
        self._callers: dict[socket.socket, Caller] = {}  # the oldest first
        self._works: dict[int, Work] = {}
        self._given: dict[str, deque[float]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve, for ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Wait for something, and see to it."""
        ends = [one.until_s for one in self._callers.values()]
        ends += [one.program.until_s for one in self._works.values()]
        first_s = min(ends, default=math.inf)
        rest_s = None if first_s == math.inf else max(first_s - time.monotonic(), 0.0)
        for key, _ in self._selector.select(rest_s):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                if key.fileobj in self._callers:  # one that has not given way meanwhile
                    self._read(key.fileobj)
            else:
                self._ended(key.fd)
        self._overdue()

    def _accept(self) -> None:
        with suppress(OSError):  # whoever called is gone, or there is no descriptor left
            line, _ = self._listener.accept()
            line.setblocking(False)
            pid, uid, _ = _PEER.unpack(
                line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            )
            if uid not in self._allowed:
                if self._may("stranger"):
                    tell(f"refused: process {pid} of uid {uid} is not the agent's")
                self._answer(line, Refused("only the agent's user and root are heard"))
                return
            if len(self._callers) >= CONNECTIONS_MAX:
                self._let_go(next(iter(self._callers)))
            self._callers[line] = Caller(pid, time.monotonic() + SILENT_S, bytearray())
            self._selector.register(line, selectors.EVENT_READ)
            self._read(line)

    def _read(self, line: socket.socket) -> None:
        """Take what has come; a whole line is an order."""
        caller = self._callers[line]
        try:
            came = line.recv(LINE_BYTES_MAX + 1 - len(caller.line))
        except BlockingIOError:
            return
        except OSError:
            came = b""
        caller.line.extend(came)
        head, newline, _ = bytes(caller.line).partition(b"\n")
        if newline:
            self._forget(line)
            self._order(line, caller.pid, head)
        elif not came:
            self._let_go(line)
        elif len(caller.line) > LINE_BYTES_MAX:
            self._forget(line)
            why = f"an order is one line of {LINE_BYTES_MAX} bytes at most"
            self._refuse(line, caller.pid, Refused(why))

    def _order(self, line: socket.socket, pid: int, text: bytes) -> None:
        try:
            order = order_of(text)
        except ValueError as error:
            self._refuse(line, pid, Refused(f"no order: {error}"))
            return
        verb = type(order).__struct_config__.tag
        if not self._may(f"{verb} {order.dry_run}"):
            why = f"{verb} was ordered more than {ORDERS_MAX} times in {ORDERS_S:.0f} s"
            self._answer(line, Refused(why, "wait a minute; see who asks in its journal"))
            return
        tell(f"process {pid} orders {text.decode()}")
        if any(work.verb == verb for work in self._works.values()) and not order.dry_run:
            self._answer(line, Refused(f"{verb} is under way already", "wait for it"))
            return
        try:
            self._do(line, str(verb), order)
        except OSError as error:
            tell(f"{verb}: {error}")
            self._answer(line, Refused(f"{verb}: {error}", "this machine does not do it"))

    def _do(self, line: socket.socket, verb: str, order: Order) -> None:
        if order.dry_run:
            self._answer(line, Done(acts.would(order, self._ways)))
        elif argv := acts.argv_of(order, self._ways):
            work = Work(verb, Program(argv), line)
            self._works[work.program.fd] = work
            self._selector.register(work.program.fd, selectors.EVENT_READ)
        else:
            acts.would(order, self._ways)
            # Before it is done: after it there is nobody to answer.
            with suppress(OSError):
                line.send(line_of(Done("the machine is reset")))
            try:
                acts.reset(self._ways)
            finally:
                line.close()

    def _ended(self, fd: int) -> None:
        self._selector.unregister(fd)
        verb, program, line = self._works.pop(fd)
        try:
            answer: Answer = Done(program.ended())
        except OSError as error:
            answer = Refused(f"{verb}: {error}", "see what it says")
        tell(f"{verb}: {answer}")
        self._answer(line, answer)

    def _overdue(self) -> None:
        now_s = time.monotonic()
        for line in [one for one, caller in self._callers.items() if caller.until_s <= now_s]:
            self._let_go(line)
        for verb, program, line in self._works.values():
            if program.until_s > now_s:
                continue
            said = program.kill()  # it is under way until it has really ended
            why = f"{verb} did not end within {acts.PROGRAM_S_MAX:.0f} s, and is killed: {said}"
            tell(why)
            self._answer(line, Refused(why))

    def _may(self, what: str) -> bool:
        """Whether it is not too often. The keys are the verbs, so there are few."""
        now_s, given = time.monotonic(), self._given.setdefault(what, deque(maxlen=ORDERS_MAX))
        if len(given) == ORDERS_MAX and now_s - given[0] < ORDERS_S:
            return False
        given.append(now_s)
        return True

    def _refuse(self, line: socket.socket, pid: int, answer: Refused) -> None:
        if self._may("nonsense"):
            tell(f"refused: process {pid}: {answer.error}")
        self._answer(line, answer)

    def _answer(self, line: socket.socket, answer: Answer) -> None:
        with suppress(OSError):  # who has gone does not hear it
            line.send(line_of(answer))
        line.close()

    def _let_go(self, line: socket.socket) -> None:
        self._forget(line)
        line.close()

    def _forget(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        del self._callers[line]


def tell(what: str) -> None:
    """One line for the journal."""
    with suppress(OSError):  # a journal that is gone is no reason not to reset
        sys.stderr.write("".join(one if one.isprintable() else "?" for one in what)[:600] + "\n")
        sys.stderr.flush()
