"""The program `holdfast-root`: by systemd's socket, or on a path of its own."""

import argparse
import os
import pwd
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.host.root import acts
from agent.host.root.acts import Ways
from agent.host.root.daemon import Daemon, tell

LISTEN_FDS_START = 3  # sd_listen_fds(3)
BACKLOG = 64
USAGE, NO_SOCKET = 2, 1


def main(ways: Ways | None = None, arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; the exit status where it cannot. Tests pass their own ways."""
    asked = _asked(arguments)
    try:
        uid, gid = _user(asked.user)
        listener = _given() or _bound(asked.socket, gid)
    except LookupError:
        print(f"holdfast-root: there is no user {asked.user!r}: name it by --user", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"holdfast-root: {asked.socket}: {error.strerror or error}", file=sys.stderr)
        return NO_SOCKET
    tell(f"ready: uid {uid} and root are heard")
    with suppress(KeyboardInterrupt):
        Daemon(listener, uid, ways or acts.of_this_machine()).run()
    return 0


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "holdfast-root",
        description="Does for the agent what needs root: reboot, reset, nvpmodel, slots.",
    )
    parser.add_argument("--user", default="holdfast", help="whom to hear beside root")
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path("/run/holdfast-root.sock"),
        help="where to listen, unless systemd has passed a socket",
    )
    return parser.parse_args(arguments)


def _user(name: str) -> tuple[int, int]:
    """Its uid and gid. Raises LookupError."""
    found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    return found.pw_uid, found.pw_gid


def _given() -> socket.socket | None:
    """The socket that systemd listens on for us, if it does."""
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    if not mine or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(LISTEN_FDS_START, False)
    return socket.socket(fileno=LISTEN_FDS_START)


def _bound(path: Path, gid: int) -> socket.socket:
    """A socket of our own, for root and this group. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    with suppress(ConnectionRefusedError, FileNotFoundError):  # nobody, or a former one's
        listener.connect(str(path))
        raise FileExistsError("another daemon serves there")
    listener.close()
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # for nobody else, from the first moment
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, 0, gid)
    path.chmod(0o660)
    listener.listen(BACKLOG)
    return listener
