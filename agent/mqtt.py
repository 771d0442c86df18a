"""A paho client driven by the event loop: its socket is read and written when it can be.

paho connects in a thread of its own, for that blocks; from then on it works here, and nowhere else.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt


def _nothing() -> None: ...


class Driver:
    """Of one connection, from `begin`, when its CONNECT is on its way, until `drop`."""

    def __init__(
        self,
        client: mqtt.Client,
        broken: Callable[[str], None],
        *,
        received: Callable[[], None] = _nothing,
        sent: Callable[[], None] = _nothing,
        incoming_bytes_max: int | None = None,
    ) -> None:
        """`broken` hears why it cannot go on; the caller drops it then.

        `received` and `sent` are called before something is read and written. A packet of more than
        `incoming_bytes_max` breaks it: a broker of MQTT 3.1.1 is not told the bound.
        """
        self._client = client
        self._broken = broken
        self._received, self._sent = received, sent
        self._incoming_bytes_max = incoming_bytes_max
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """From now on the client works here."""
        client = self._client
        sock: Any = client.socket()
        client.on_socket_register_write = self._register_write
        client.on_socket_unregister_write = self._unregister_write
        client.on_socket_close = self._closing
        self._loop.add_reader(sock, self._read)
        if client.want_write():
            self._register_write(None, None, sock)

    def drive(self, step: Callable[[], object]) -> None:
        """Let paho work. A packet that it cannot take apart would come up again and again."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever a broken packet makes paho raise
            self._broken(f"the broker sent what cannot be read: {error!r}")

    def flush(self) -> None:
        """Write what there is, as far as it goes at once."""
        with contextlib.suppress(OSError):  # it is going down anyway
            self._client.loop_write()

    def drop(self) -> None:
        """Close the socket; soon, for paho may be in the middle of it."""
        self._loop.call_soon(self._drop)

    def _read(self) -> None:
        self._received()
        self.drive(self._client.loop_read)
        while isinstance(sock := self._client.socket(), ssl.SSLSocket) and sock.pending():
            self.drive(self._client.loop_read)
        most = self._incoming_bytes_max
        if most is not None and self._client._in_packet["to_process"] > most:
            self._broken(f"the broker sends more than {most} bytes in one packet")

    def _write(self) -> None:
        self._sent()
        self.drive(self._client.loop_write)

    def _register_write(self, _c: Any, _u: Any, sock: Any) -> None:
        try:
            self._loop.add_writer(sock, self._write)
        except RuntimeError:  # a reset came behind what was read: uvloop is done with such a socket
            self._broken("the connection was reset")

    def _unregister_write(self, _c: Any, _u: Any, sock: Any) -> None:
        self._loop.remove_writer(sock)

    def _closing(self, _c: Any, _u: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)

    def _drop(self) -> None:
        sock = self._client.socket()  # None once paho has closed it
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            self._client.on_socket_close = self._client.on_socket_unregister_write = None
            sock.close()
