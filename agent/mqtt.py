"""A paho client driven by the event loop: its socket is read and written when it can be.

paho connects in a thread of its own, for that blocks; from then on it works here, and nowhere else.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt

from agent.words import quoted

READS_MAX = 100  # in one turn of the loop: a broker that never ends must not hold up the rest


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
        self._rest: asyncio.Handle | None = None
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
            self._broken(f"the broker sent what cannot be read: {quoted(repr(error))}")

    def flush(self) -> None:
        """Write what there is, as far as it goes at once."""
        with contextlib.suppress(OSError):  # it is going down anyway
            self._client.loop_write()

    def drop(self) -> None:
        """Close the socket; soon, for paho may be in the middle of it."""
        self._loop.call_soon(self._drop)

    def _read(self) -> None:
        self._received()
        for _ in range(READS_MAX):
            self.drive(self._client.loop_read)
            if not self._has_rest():
                break
        else:  # the loop does not see what TLS holds
            self._rest = self._rest or self._loop.call_soon(self._read_rest)
        if excess := self._excess():
            self._broken(f"the broker sends {excess}")

    def _has_rest(self) -> bool:
        """Whether TLS has read more from the socket than was asked for."""
        sock = self._client.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _read_rest(self) -> None:
        self._rest = None
        if self._has_rest():
            self._read()

    def _excess(self) -> str:
        """What of the broker's would fill the memory; paho keeps it all. Empty: nothing."""
        most = self._incoming_bytes_max
        if most is not None and self._client._in_packet["to_process"] > most:
            return f"more than {most} bytes in one packet"
        if self._client._in_messages:  # each until it is released, which it may never be
            return "with QoS 2, which nobody asked for"
        return ""

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
        if self._rest:
            self._rest.cancel()
        sock = self._client.socket()  # None once paho has closed it
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            self._client.on_socket_close = self._client.on_socket_unregister_write = None
            sock.close()
