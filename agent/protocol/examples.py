"""One device's messages, each as the code encodes it and as a reader of it sees it."""

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from agent.protocol import ack, batch, blob, content, envelope, grants, twin
from agent.protocol.ack import Ack, StreamAck
from agent.protocol.commands import Command, Result, sign
from agent.protocol.grants import Ask, Grant
from agent.protocol.presence import Heartbeat, Presence
from agent.protocol.signing import Key
from agent.protocol.twin import AspectShown, Desired, Reported
from agent.records import Balance, Drop, Range, Record, RecordType, Segment, Stamp

DEVICE, STREAM = "press-12", "mic.segments"
EPOCH = "6f1f8a52c3d94e0b"
BOOT = "0d7a2f6e-6b0c-4c0e-9a37-3f1d3a4f6a11"
FLAC = b"fLaC, and then sound"
SHA256 = hashlib.sha256(FLAC).hexdigest()
TARGET = f"targets/models/{SHA256}.speech-4.tar"


class Example(Struct, frozen=True):
    """A message: its bytes `wire`, the envelope's header and the content, as JSON has them."""

    name: str
    wire: bytes
    payload: Any
    headers: dict[str, Any] | None = None


def examples() -> dict[str, list[Example]]:
    """By the name of the message in the AsyncAPI document."""
    return {
        "presence": [_json(name, _presence(online)) for name, online in _LIVES],
        "heartbeat": [_json("with a note", _heartbeat())],
        "batch": [
            _batch("live", [_record()], [Drop(38, 40, "evicted")], live=True),
            _batch(
                "told ranges alone", [], [Drop(1, 4, "expired"), Drop(9, 9, "dead")], live=False
            ),
        ],
        "piece": [_piece()],
        "ack": [_json("with ranges", _ack())],
        "ask": [_json("of one blob", _ask())],
        "grant": [_json(name, grant) for name, grant in _grants()],
        "contentAsk": [_json("the rest of a model", _content_ask())],
        "contentPiece": [_content_piece(name, wire) for name, wire in _content_pieces()],
        "command": [_json("for an hour", _command())],
        "signedCommand": [_wire("the same, signed", sign(_command(), Key(bytes(32))))],
        "result": [_json(f"it {result.state}", result) for result in _results()],
        "desired": [_json("the third", _desired())],
        "signedDesired": [_wire("the same, signed", twin.sign(_desired(), Key(bytes(32))))],
        "reported": [_json("it is so", _reported())],
    }


_LIVES = [("birth", True), ("last will", False)]


def _json(name: str, message: Struct) -> Example:
    return _wire(name, msgspec.json.encode(message))


def _wire(name: str, wire: bytes) -> Example:
    return Example(name, wire, msgspec.json.decode(wire))


def _presence(online: bool) -> Presence:
    return Presence(device=DEVICE, online=online, epoch=EPOCH, version="0.1.0", ack_from="ingest")


def _heartbeat() -> Heartbeat:
    condition = {
        "name": "clock_untrusted",
        "subject": "clock",
        "severity": "note",
        "cause": "the kernel says that its clock is not synchronised; times are labels",
        "remedy": "set up chrony (with rtcsync) or systemd-timesyncd",
        "since_us": 1_767_225_600_000_000,
        "age_s": 60.5,
    }
    return Heartbeat(
        device=DEVICE,
        epoch=EPOCH,
        uptime_s=3600.5,
        status="healthy",
        conditions=[condition],
        ledger={EPOCH: {STREAM: Balance(41, 30, 8, {"evicted": 3})}},
        start="power",
    )


def _record() -> Record:
    body = Segment(
        id="mic/3/16000",
        source="mic",
        take=3,
        name="live",
        start=16_000,
        samples=24_000,
        speech=0.93,
        heard_us=1_767_225_600_000_000,
        model="speech-1",
        ep="CPUExecutionProvider",
        sha256=SHA256,
        size_bytes=len(FLAC),
    )
    stamp = Stamp(BOOT, 123_456_789_000, 1_767_225_602_500_000)
    encoded = msgspec.json.encode(body)
    return Record(STREAM, 41, RecordType.SEGMENT, stamp, encoded, len(FLAC), timebound=True)


def _batch(name: str, records: list[Record], dropped: list[Drop], *, live: bool) -> Example:
    wire = batch.encode(DEVICE, EPOCH, STREAM, records, dropped, live=live)
    header, events = batch.decode(wire)
    return Example(name, wire, _builtins(events), _builtins(header))


def _piece() -> Example:
    wire = blob.encode(DEVICE, EPOCH, STREAM, 41, 6, len(FLAC), FLAC[6:])
    header, content = envelope.unseal(wire, blob.Header)
    return Example(
        "the rest of a blob", wire, base64.b64encode(content).decode(), _builtins(header)
    )


def _ack() -> Ack:
    ranges = [Range(35, 36), Range(38, 40)]
    stream = StreamAck(30, ranges, {41: 6}, [Range(37, 37)], tail=(30, 0x1D0B49E5))
    return ack.decode(ack.encode(Ack({EPOCH: {STREAM: stream}})))


def _ask() -> Ask:
    return Ask(epoch=EPOCH, stream=STREAM, seq=41, size=len(FLAC), sha256=SHA256)


def _grants() -> list[tuple[str, Grant]]:
    names: dict[str, Any] = {"epoch": EPOCH, "stream": STREAM, "seq": 41, "sha256": SHA256}
    url = f"https://s3.example/blobs/{DEVICE}/{EPOCH}/{STREAM}/41?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    checksum = base64.b64encode(bytes.fromhex(SHA256)).decode()
    granted = Grant(**names, url=url, headers={"x-amz-checksum-sha256": checksum}, expires_s=900)
    said = [
        ("a place", granted),
        ("it is there", Grant(**names, stored=True)),
        ("in pieces, please", Grant(**names, refused="no object store is configured")),
    ]
    return [(name, grants.decode_grant(grants.encode(grant))) for name, grant in said]


def _content_ask() -> content.Ask:
    return content.Ask(path=TARGET, start=131_072, span_bytes=2_097_152, piece_bytes_max=129_024)


def _content_pieces() -> list[tuple[str, bytes]]:
    return [
        ("the end of a model", content.encode(TARGET, 131_072, 131_072 + len(FLAC), FLAC)),
        ("no such file", content.encode_none("metadata/2.root.json")),
        ("not now", content.encode_none(TARGET, "the repository is being restored")),
    ]


def _content_piece(name: str, wire: bytes) -> Example:
    header, data = envelope.unseal(wire, content.Header)
    return Example(name, wire, base64.b64encode(data).decode(), _builtins(header))


def _command() -> Command:
    return Command(
        id="roll-7",
        name="sync.pause",
        args={"for_s": 3600},
        device=DEVICE,
        issuer="ada",
        issued=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 1, 8, tzinfo=UTC),
    )


def _results() -> list[Result]:
    named: dict[str, Any] = {"id": "roll-7", "name": "sync.pause", "device": DEVICE}
    at_us = 1_767_225_602_500_000
    told = "the link is paused already"
    return [
        Result(**named, state="running", number=41, progress=0.5, at_us=at_us),
        Result(**named, state="succeeded", number=41, result={"until": None}, at_us=at_us),
        Result(**named, state="refused", reason="not_now", message=told, at_us=at_us),
    ]


def _desired() -> Desired:
    return Desired(version=3, state={"log_level": "debug"}, device=DEVICE, enforce=["log_level"])


def _reported() -> Reported:
    aspect = AspectShown(actual="debug", standing="converged")
    return Reported(
        device=DEVICE, version=41, desired_version=3, holdfast="0.1.0", state={"log_level": aspect}
    )


def _builtins(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))
