"""A disk that forgets what was not flushed, as a real one does when its power goes.

A server of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md: fixed newstyle,
simple replies) on a unix socket, for one client after the other. SIGKILL of a machine alone forgets
nothing: what a guest has written lies in the host's cache by then.

Limits  : SECTOR_BYTES are written whole or not at all; CACHE_BYTES_MAX may wait for a flush, then
          all of it is written by itself.
Format  : `path` is what is durable. What was written and not flushed is in memory, each version of
          each sector.
Recovery: `cut` is the power going: each such sector is what it was, or any of what was written to
          it since, at random.
"""

import os
import random
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SECTOR_BYTES = 512
CACHE_BYTES_MAX = 64 * 1024**2
_MAGIC, _OPTION, _REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST, _ANSWER = 0x25609513, 0x67446698
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _ABOUT, _UNKNOWN = 1, 3, 2**31 + 1
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_FIXED_NEWSTYLE, _HAS_FLAGS, _SEND_FLUSH, _SEND_FUA, _FUA = 1, 1, 4, 8, 1
_EINVAL = 22


class Disk:
    """One disk of the machine. `begin`, then give `url` to it; `end` when all is over."""

    def __init__(self, path: Path, *, lies: bool = False) -> None:
        """`path` is the image; a disk that `lies` answers a flush and does nothing."""
        self.url = f"nbd+unix:///?socket={path}.sock"
        self.flushes = 0
        self._lies = lies
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size_bytes = os.fstat(self._fd).st_size
        self._waiting: dict[int, list[bytes]] = {}  # sector: what was written to it, in order
        self._versions = 0
        self._server = socket.socket(socket.AF_UNIX)
        Path(f"{path}.sock").unlink(missing_ok=True)
        self._server.bind(f"{path}.sock")
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._idle = threading.Event()
        self._idle.set()

    def begin(self) -> None:
        """Serve."""
        self._thread.start()

    def end(self) -> None:
        """Serve nobody any more."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()
        os.close(self._fd)

    def cut(self, chance: random.Random) -> int:
        """The power goes, after the machine's: how many sectors have lost what was written last."""
        assert self._idle.wait(10), "the machine must be off"
        lost = 0
        for sector, versions in self._waiting.items():
            kept = chance.randrange(len(versions) + 1)
            lost += kept < len(versions)
            if kept:
                os.pwrite(self._fd, versions[kept - 1], sector * SECTOR_BYTES)
        self._waiting.clear()
        self._versions = 0
        return lost

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:  # ended
                return
            self._idle.clear()
            with client, suppress(EOFError, OSError):  # the machine was killed
                self._greet(client)
                while self._answer(client):
                    pass
            self._idle.set()

    def _greet(self, client: socket.socket) -> None:
        client.sendall(_MAGIC + _OPTION + struct.pack(">H", _FIXED_NEWSTYLE))
        _taken(client, 4)
        about = struct.pack(">QH", self._size_bytes, _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA)
        while True:
            _, option, length = struct.unpack(">8sII", _taken(client, 16))
            _taken(client, length)
            if option == _EXPORT_NAME:
                client.sendall(about + bytes(124))
                return
            if option in (_INFO, _GO):
                _tell(client, option, _ABOUT, struct.pack(">H", 0) + about)
                _tell(client, option, _ACK)
            elif option == _ABORT:
                _tell(client, option, _ACK)
                raise EOFError
            else:
                _tell(client, option, _UNKNOWN)
            if option == _GO:
                return

    def _answer(self, client: socket.socket) -> bool:
        """One request; whether another may come."""
        form = ">IHHQQI"
        head = _taken(client, struct.calcsize(form))
        _, flags, kind, handle, start, length = struct.unpack(form, head)
        if kind == _DISCONNECT:
            return False
        error, found = 0, b""
        if kind == _READ:
            found = self._read(start, length)
        elif kind == _WRITE:
            self._write(start, _taken(client, length))
            if flags & _FUA and not self._lies:
                self._write_back(range(start // SECTOR_BYTES, (start + length) // SECTOR_BYTES))
        elif kind == _FLUSH:
            self.flushes += 1
            if not self._lies:
                self._write_back(list(self._waiting))
        else:
            error = _EINVAL
        client.sendall(struct.pack(">IIQ", _ANSWER, error, handle) + found)
        return True

    def _read(self, start: int, length: int) -> bytes:
        found = bytearray(os.pread(self._fd, length, start))
        for at in range(0, length, SECTOR_BYTES):
            if versions := self._waiting.get((start + at) // SECTOR_BYTES):
                found[at : at + SECTOR_BYTES] = versions[-1]
        return bytes(found)

    def _write(self, start: int, content: bytes) -> None:
        for at in range(0, len(content), SECTOR_BYTES):
            versions = self._waiting.setdefault((start + at) // SECTOR_BYTES, [])
            versions.append(content[at : at + SECTOR_BYTES])
            self._versions += 1
        if self._versions * SECTOR_BYTES > CACHE_BYTES_MAX:
            self._write_back(list(self._waiting))

    def _write_back(self, sectors: Iterable[int]) -> None:
        for sector in sectors:
            versions = self._waiting.pop(sector)
            self._versions -= len(versions)
            os.pwrite(self._fd, versions[-1], sector * SECTOR_BYTES)


def _taken(client: socket.socket, length: int) -> bytes:
    """So many bytes. Raises EOFError."""
    found = bytearray()
    while len(found) < length:
        piece = client.recv(length - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def _tell(client: socket.socket, option: int, kind: int, content: bytes = b"") -> None:
    client.sendall(struct.pack(">QIII", _REPLY, option, kind, len(content)) + content)
