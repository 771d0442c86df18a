"""The AsyncAPI document: that of the code, sound in itself, and true of what is really said."""

import base64
import copy
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
import pytest
import yaml
import zstandard
from jsonschema import Draft7Validator
from paho.mqtt.enums import CallbackAPIVersion

from agent.protocol import ack, asyncapi
from agent.protocol.examples import EPOCH, STREAM, Example, examples
from agent.protocol.topics import Topics
from agent.records import Range
from tests.outside import ROOT, Device, Mosquitto, running, until

FILE = ROOT / "docs" / "asyncapi.yaml"
DOCUMENT: dict[str, Any] = asyncapi.document()
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
SHOWN = [(name, example) for name, all_ in examples().items() for example in all_]
DEVICE = "device-under-test"
DOORS = {"presence", "heartbeat", "up", "blob"}
# As asyncapi.com/definitions/3.0.0 has it.
KNOWN = {
    "": {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations"}
    | {"components"},
    "server": {"host", "protocol", "protocolVersion", "description", "bindings"},
    "channel": {"address", "title", "description", "parameters", "messages"},
    "operation": {"action", "channel", "title", "tags", "bindings", "messages", "reply"},
    "message": {"title", "summary", "description", "contentType", "headers", "payload"}
    | {"examples", "x-wire"},
    "parameter": {"description", "examples"},
    "components": {"parameters", "messages", "schemas"},
}


def references(part: Any) -> Iterator[str]:
    """Every `$ref` below a part of the document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def at(reference: str) -> Any:
    """What a reference names; KeyError where that is nothing."""
    part: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        part = part[step]
    return part


def faults(schema: dict[str, Any], value: Any) -> list[str]:
    """What a schema of the document finds wrong with a value."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return [error.message for error in Draft7Validator(whole).iter_errors(value)]


def read(wire: bytes, message: dict[str, Any]) -> tuple[Any, Any]:
    """Header and content of a payload, read as the document says and by nothing of the code."""
    if "headers" not in message:
        return None, json.loads(wire)
    assert wire[:4] == b"HF1\n"
    size = int.from_bytes(wire[4:8], "big")
    encoded, content = wire[12 : 12 + size], wire[12 + size :]
    assert int.from_bytes(wire[8:12], "big") == zlib.crc32(encoded)
    header = json.loads(encoded)
    assert header["content"] == message["contentType"]
    if header.get("encoding") == "zstd":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    assert header["digest"] == hashlib.sha256(content).hexdigest()
    if message["contentType"].endswith("json"):
        return header, json.loads(content)
    return header, base64.b64encode(content).decode()


def wrong(message: dict[str, Any], header: Any, content: Any) -> list[str]:
    """What the document finds wrong with a message that was read."""
    found = faults(message["payload"], content)
    return found + (faults(message["headers"], header) if "headers" in message else [])


def message_at(topic: str) -> dict[str, Any]:
    """The message of the one channel that a topic belongs to."""
    found = []
    for channel in DOCUMENT["channels"].values():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(channel["address"]))
        if re.fullmatch(pattern, topic):
            (reference,) = channel["messages"].values()
            found.append(at(reference["$ref"]))
    assert len(found) == 1, f"{topic} belongs to {len(found)} channels"
    return found[0]


def test_the_shipped_document_is_that_of_the_code() -> None:
    assert FILE.read_bytes() == asyncapi.text(), "run: python -m agent.protocol >docs/asyncapi.yaml"
    assert yaml.safe_load(FILE.read_text()) == DOCUMENT


def test_it_has_the_form_of_asyncapi_3() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(DOCUMENT["info"])
    kinds = {
        "": [DOCUMENT],
        "server": DOCUMENT["servers"].values(),
        "channel": DOCUMENT["channels"].values(),
        "operation": DOCUMENT["operations"].values(),
        "message": MESSAGES.values(),
        "parameter": DOCUMENT["components"]["parameters"].values(),
        "components": [DOCUMENT["components"]],
    }
    for kind, parts in kinds.items():
        for part in parts:
            assert set(part) <= KNOWN[kind], kind
    for reference in references(DOCUMENT):
        assert at(reference) is not None
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)


def test_each_channel_has_its_parameters_and_both_ends() -> None:
    for name, channel in DOCUMENT["channels"].items():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel["parameters"])
        ends = [
            (operation["action"], operation["tags"][0]["name"])
            for operation in DOCUMENT["operations"].values()
            if operation["channel"]["$ref"] == f"#/channels/{name}"
        ]
        assert sorted(ends) in (
            [("receive", "cloud"), ("send", "device")],
            [("receive", "device"), ("send", "cloud")],
        )


def test_an_operation_speaks_its_channels_messages_alone() -> None:
    for operation in DOCUMENT["operations"].values():
        for part in filter(None, [operation, operation.get("reply")]):
            channel = part["channel"]["$ref"]
            for message in part["messages"]:
                assert message["$ref"].startswith(f"{channel}/messages/")


def test_every_topic_has_a_channel_and_the_other_way_round() -> None:
    topics = Topics("holdfast/v1", "{device}")
    names = {value for name, value in vars(topics).items() if name != "root"}
    methods = [name for name, value in vars(Topics).items() if not name.startswith("_")]
    names |= {getattr(topics, name)("{stream}") for name in methods}
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == names


@pytest.mark.parametrize("name", asyncapi.STRUCTS)
def test_every_field_of_a_struct_is_in_its_schema(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    fields = msgspec.structs.fields(asyncapi.STRUCTS[name])
    assert set(schema["properties"]) == {field.encode_name for field in fields}
    assert set(schema["required"]) == {field.encode_name for field in fields if field.required}


def test_every_message_is_shown() -> None:
    assert set(examples()) == set(MESSAGES)


@pytest.mark.parametrize(("name", "example"), SHOWN)
def test_what_the_code_encodes_is_as_the_document_says(name: str, example: Example) -> None:
    message = MESSAGES[name]
    header, content = read(example.wire, message)
    assert (header, content) == (example.headers, example.payload)
    assert base64.b64encode(example.wire).decode() in message["x-wire"]
    shown = {"name": example.name, "headers": header, "payload": content}
    assert {k: v for k, v in shown.items() if v is not None} in message["examples"]
    assert not wrong(message, header, content)


@pytest.mark.parametrize(("name", "example"), SHOWN)
def test_a_message_without_one_of_its_fields_is_not_valid(name: str, example: Example) -> None:
    taken = 0
    for part in ("headers", "payload"):
        schema, whole = MESSAGES[name].get(part, {}), getattr(example, part)
        events = isinstance(whole, list)
        items = at(schema["$ref"])["items"] if events else schema
        for field in at(items["$ref"])["required"] if whole and "$ref" in items else []:
            torn = copy.deepcopy(whole)
            del (torn[0] if events else torn)[field]
            assert any(repr(field) in fault for fault in faults(schema, torn))
            taken += 1
    assert taken


def test_a_range_is_two_numbers_and_a_dropped_one_has_a_reason() -> None:
    stream = {"mark": 1, "ranges": [[3, 4]]}
    schema = {"$ref": "#/components/schemas/StreamAck"}
    assert not faults(schema, stream)
    for torn in ([3], ["3", 4], {"first": 3, "last": 4}):
        assert faults(schema, {**stream, "ranges": [torn]})
    assert faults({"$ref": "#/components/schemas/Drop"}, [1, 2])


def test_a_real_agent_says_what_the_document_says(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    sample = ROOT / "samples" / "workshop.flac"
    (tmp_path / "inbox" / sample.name).write_bytes(sample.read_bytes())
    source = {"kind": "folder", "name": "inbox", "path": str(tmp_path / "inbox"), "keep": "all"}
    broker = Mosquitto(tmp_path)
    settings = {
        "link": {"broker_url": broker.url, "ack_from": "ingest", "heartbeat_s": 0.5},
        "audio": {"sources": [{**source, "poll_s": 0.05, "settle_s": 0.05}]},
    }
    device = Device(tmp_path, settings)
    heard: list[tuple[str, bytes]] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe("#", 1)
    client.on_message = lambda _c, _u, m: heard.append((m.topic, m.payload))
    with running(broker):
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        try:
            with running(device):
                until(lambda: {t.split("/")[3] for t, _ in heard} >= DOORS, "all doors spoke")
                _acknowledge(client, heard, device)
        finally:
            client.disconnect()
            client.loop_stop()
    for topic, payload in heard:
        message = message_at(topic)
        assert not wrong(message, *read(payload, message)), topic


def _acknowledge(client: mqtt.Client, heard: list[tuple[str, bytes]], device: Device) -> None:
    """An ack in the document's words alone, and the device obeys it."""
    topic, payload = next((t, p) for t, p in heard if "/up/" in t)
    header, _ = read(payload, message_at(topic))
    word = {"epochs": {header["epoch"]: {header["stream"]: {"mark": header["last"]}}}}
    client.publish(f"holdfast/v1/{DEVICE}/ack", json.dumps(word), 1, retain=True)
    until(lambda: device.ledger(header["stream"])["delivered"], "the device took the ack")


def test_an_ack_with_everything_in_it_is_read_by_the_device() -> None:
    (shown,) = examples()["ack"]
    said = ack.decode(shown.wire).epochs[EPOCH][STREAM]
    assert (said.mark, said.parts, said.refused) == (30, {41: 6}, [Range(37, 37)])
