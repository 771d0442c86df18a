"""A worker that misbehaves in one way at its first batch, once; whoever comes after it is honest.

Its environment has the way, LIE, and a file that the first one makes, LIAR.
"""

import contextlib
import itertools
import os
import signal
import socket
import struct
from pathlib import Path

import msgspec

from agent.inference import wire, worker

IDENTITY = [wire.Tensor("x", "FP32", [-1, 4])]
GOOD = wire.Answer(size_bytes=16)


def answers(batch: wire.Batch, **other: object) -> wire.Answers:
    found = {"id": batch.id, "answers": [GOOD] * len(batch.calls), **other}
    return wire.Answers(**{"received_s": 1.0, "began_s": 1.0, "ended_s": 1.0, **found})


def lie(way: str, sock: socket.socket, batch: wire.Batch) -> None:
    count = len(batch.calls)
    body = [bytes(16) * count]
    match way:
        case "hangs up":
            sock.shutdown(socket.SHUT_RDWR)
        case "garbage":
            sock.sendall(struct.pack("!II", 4, 0) + b"\xc1\xc1\xc1\xc1")
        case "another batch":
            wire.send(sock, answers(batch, id=batch.id + 7), body)
        case "too many":
            wire.send(sock, answers(batch, answers=[GOOD] * (count + 1)), [bytes(16 * count + 16)])
        case "too short":
            wire.send(sock, answers(batch), [bytes(3)])
        case "elsewhere":
            wire.send(sock, answers(batch, at=64))
        case "below zero":
            wire.send(sock, answers(batch, answers=[wire.Answer(size_bytes=-16)] * count))
        case "oversized":
            sock.sendall(struct.pack("!II", 1 << 31, 1 << 31))
        case "second hello":
            wire.send(sock, wire.Hello({"second": wire.Loaded("", 0.0)}))
        case "chatter":
            with contextlib.suppress(OSError):
                for i in itertools.count():
                    wire.send(sock, wire.Failure(f"{i}"))


def main(fd: str, pipe: str, arena: str, parent: str) -> None:
    way = os.environ["LIE"]
    try:
        Path(os.environ["LIAR"]).touch(exist_ok=False)
    except FileExistsError:
        worker.main(fd, pipe, arena, parent)
        return
    sock = socket.socket(fileno=int(fd))
    inbox = wire.Inbox(sock)
    inbox.receive()
    if way == "other models":
        wire.send(sock, wire.Hello({"second": wire.Loaded("", 0.0)}))
    elif way != "silence":
        wire.send(sock, wire.Hello({"first": wire.Loaded("", 0.0, inputs=IDENTITY)}))
    if way not in ("stalled", "other models", "silence"):
        head, _ = inbox.receive()
        lie(way, sock, msgspec.msgpack.decode(head, type=wire.Batch))
    while True:
        signal.pause()
