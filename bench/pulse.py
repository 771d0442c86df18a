"""A client that asks again and again, with a pause between, and notes how long each answer took.

It runs in a process of its own, with one connection at a time. Its orders, seconds to run, come on
stdin, one a line; for each, the latencies in seconds go to stdout as a line of JSON.

    with Pulse(port, requests, pause_s=0.005) as pulse:
        latencies_s = pulse.run(2.0)
"""

import base64
import http.client
import itertools
import json
import socket
import subprocess
import sys
import time
from typing import IO, cast

ANSWER_S_MAX = 60.0


class Pulse:
    """The process that asks; a context."""

    def __init__(self, port: int, requests: list[bytes], pause_s: float) -> None:
        self._first = [port, pause_s, [base64.b64encode(one).decode() for one in requests]]

    def __enter__(self) -> "Pulse":
        command = [sys.executable, "-m", "bench.pulse"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self._tell(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, seconds: float) -> list[float]:
        """Ask for so long: each answer's latency. Raises ValueError where one is no 200."""
        self._tell(seconds)
        return cast(list[float], json.loads(cast(IO[str], self._process.stdout).readline()))

    def _tell(self, what: object) -> None:
        print(json.dumps(what), file=self._process.stdin, flush=True)


def asked(connection: socket.socket, request: bytes) -> float:
    """Seconds from the first byte sent to the last one read."""
    began_s = time.perf_counter()
    connection.sendall(request)
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    body = answer.read()
    took_s = time.perf_counter() - began_s
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"{answer.status} {body[:300]!r}")
    return took_s


def main() -> None:
    port, pause_s, encoded = json.loads(sys.stdin.readline())
    requests = itertools.cycle([base64.b64decode(one) for one in encoded])
    for line in sys.stdin:
        end_s, took_s = time.perf_counter() + float(line), list[float]()
        with socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < end_s:
                took_s.append(asked(connection, next(requests)))
                time.sleep(pause_s)
        print(json.dumps(took_s), flush=True)


if __name__ == "__main__":
    main()
