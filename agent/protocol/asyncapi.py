"""The protocol as an AsyncAPI 3.0 document: `python -m agent.protocol >docs/asyncapi.yaml`.

What people have to be told stands in `asyncapi.template`, where `@NAME` is a limit of the
code. The schemas are those of the structs that the code reads and writes, in the words of JSON
schema draft 7, which AsyncAPI speaks; the examples are what the code encodes.
"""

import base64
import inspect
from pathlib import Path
from string import Template
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from agent import config
from agent.protocol import (
    ack,
    batch,
    blob,
    commands,
    content,
    envelope,
    grants,
    presence,
    signed,
    twin,
)
from agent.protocol.examples import Example, examples

TEMPLATE = Path(__file__).with_name("asyncapi.template")
STRUCTS: dict[str, type[Struct]] = {
    "BatchHeader": batch.Header,
    "Event": batch.Event,
    "BlobHeader": blob.Header,
    "Ack": ack.Ack,
    "Presence": presence.Presence,
    "Heartbeat": presence.Heartbeat,
    "Ask": grants.Ask,
    "Grant": grants.Grant,
    "ContentAsk": content.Ask,
    "ContentHeader": content.Header,
    "Command": commands.Command,
    "Signed": signed.Signed,
    "Result": commands.Result,
    "Desired": twin.Desired,
    "Reported": twin.Reported,
}
REF = "#/components/schemas/"
_LINK = {field.name: field.default for field in msgspec.structs.fields(config.Link)}
LIMITS = {
    "PREFIX": _LINK["topic_prefix"],
    "KEEPALIVE_S": _LINK["keepalive_s"],
    "HEARTBEAT_S": f"{_LINK['heartbeat_s']:g}",
    "PAYLOAD_BYTES_MAX": _LINK["payload_bytes_max"],
    "HEADER_BYTES_MAX": envelope.HEADER_BYTES_MAX,
    "CONTENT_BYTES_MAX": batch.CONTENT_BYTES_MAX,
    "BYTES_MAX": ack.BYTES_MAX,
    "STREAMS_MAX": ack.STREAMS_MAX,
    "RANGES_MAX": ack.RANGES_MAX,
    "PARTS_MAX": ack.PARTS_MAX,
    "ASK_BYTES_MAX": grants.BYTES_MAX,
    "HEADERS_MAX": grants.HEADERS_MAX,
    "SIZE_BYTES_MAX": grants.SIZE_BYTES_MAX,
    "CONTENT_ASK_BYTES_MAX": content.ASK_BYTES_MAX,
    "COMMAND_BYTES_MAX": commands.COMMAND_BYTES_MAX,
    "RESULT_BYTES_MAX": commands.RESULT_BYTES_MAX,
    "TWIN_BYTES_MAX": twin.TWIN_BYTES_MAX,
}


class _Prose(Template):
    delimiter = "@"


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it reads; what is said twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def document() -> dict[str, Any]:
    """The whole document, as JSON has it."""
    prose = _Prose(TEMPLATE.read_text(encoding="utf-8")).substitute(LIMITS)
    whole: dict[str, Any] = yaml.safe_load(prose)
    components = whole["components"]
    components["schemas"].update(_schemas())
    for name, shown in examples().items():
        message = components["messages"][name]
        message["examples"] = [_shown(example) for example in shown]
        wire = [base64.b64encode(example.wire).decode() for example in shown]
        message["x-wire"] = wire
    return whole


def text() -> bytes:
    """The document as `docs/asyncapi.yaml` holds it."""
    note = "# Generated: python -m agent.protocol >docs/asyncapi.yaml\n"
    body = yaml.dump(document(), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return (note + body).encode()


def _shown(example: Example) -> dict[str, Any]:
    said = {"name": example.name, "headers": example.headers, "payload": example.payload}
    return {key: value for key, value in said.items() if value is not None}


def _schemas() -> dict[str, Any]:
    refs, found = msgspec.json.schema_components(
        list(STRUCTS.values()), ref_template=REF + "{name}"
    )
    names = {ref["$ref"].removeprefix(REF): name for ref, name in zip(refs, STRUCTS, strict=True)}
    schemas = {names.get(name, name): _draft_7(found[name], names) for name in found}
    return {name: schemas[name] for name in sorted(schemas)}


def _draft_7(schema: Any, names: dict[str, str]) -> Any:
    """A schema of draft 2020-12 in draft 7's words; `names` are schemas that have other names."""
    if isinstance(schema, list):
        return [_draft_7(part, names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    same = {key: _draft_7(part, names) for key, part in schema.items()}
    if isinstance(schema.get("$ref"), str):
        name = schema["$ref"].removeprefix(REF)
        same["$ref"] = REF + names.get(name, name)
    if isinstance(schema.get("description"), str):
        same["description"] = inspect.cleandoc(schema["description"])
    if isinstance(schema.get("prefixItems"), list):
        same["items"] = same.pop("prefixItems")
    return same
