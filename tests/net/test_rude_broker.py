"""A broker that resets a connection right behind an answer, so that both come in one glance."""

import socket
import threading
from pathlib import Path

from tests.net.coordinator import LONG, Site
from tests.net.proxy import reset
from tests.outside import Mosquitto

CONNACK = bytes([0x20, 3, 0, 0, 0])  # MQTT 5, without properties
TIMES = 60 if LONG else 6


class Rude:
    """Answers CONNECT and SUBSCRIBE, and resets the connection in the same breath."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.times = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def kill(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def dead(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return  # it was killed
            try:
                caller.recv(4096)
                caller.sendall(CONNACK)
                packet = caller.recv(4096)
                caller.sendall(bytes([0x90, 4, *packet[2:4], 0, 1]))
            except OSError:
                continue
            finally:
                reset(caller)
                self.times += 1


def test_a_reset_right_behind_an_answer_ends_the_connection_alone(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    with Site(
        tmp_path, broker=broker, broker_url=broker.url
    ) as site:  # no proxy: it would part them
        site.stores(20)
        site.broker.kill()
        site.linked(up=False)
        rude = Rude(site.broker.port)
        rude.start()
        try:
            site.until(lambda: rude.times >= TIMES, "it tries again and again")
        finally:
            rude.kill()
        site.recover()
        assert site.faults() == []
