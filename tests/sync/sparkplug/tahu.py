"""Tahu's payload for the real protobuf library: sparkplug_b.proto as a descriptor, made here.

Names, numbers and types of the fields are those of Eclipse Tahu's file.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {
    "double": 1,
    "float": 2,
    "uint64": 4,
    "bool": 8,
    "string": 9,
    "message": 11,
    "bytes": 12,
    "uint32": 13,
}
_VALUES = "int_value:uint32 long_value:uint64 float_value:float double_value:double"
_VALUES += " boolean_value:bool string_value:string"
# Fields in the order of their numbers: `*` repeats, what is no type is a message; after `|` comes
# the oneof.
_MESSAGES = {
    "Template.Parameter": f"name:string type:uint32 | {_VALUES}",
    "Template": "version:string metrics*:Metric parameters*:Template.Parameter template_ref:string"
    " is_definition:bool",
    "DataSet.DataSetValue": f"| {_VALUES}",
    "DataSet.Row": "elements*:DataSet.DataSetValue",
    "DataSet": "num_of_columns:uint64 columns*:string types*:uint32 rows*:DataSet.Row",
    "PropertyValue": f"type:uint32 is_null:bool | {_VALUES} propertyset_value:PropertySet"
    " propertysets_value:PropertySetList",
    "PropertySet": "keys*:string values*:PropertyValue",
    "PropertySetList": "propertyset*:PropertySet",
    "MetaData": "is_multi_part:bool content_type:string size:uint64 seq:uint64 file_name:string"
    " file_type:string md5:string description:string",
    "Metric.Extension": "",
    "Metric": "name:string alias:uint64 timestamp:uint64 datatype:uint32 is_historical:bool"
    " is_transient:bool is_null:bool metadata:MetaData properties:PropertySet"
    f" | {_VALUES} bytes_value:bytes dataset_value:DataSet template_value:Template"
    " extension_value:Metric.Extension",
    "": "timestamp:uint64 metrics*:Metric seq:uint64 uuid:string body:bytes",
}


def _descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="sparkplug_b.proto", package="org.eclipse.tahu.protobuf", syntax="proto2"
    )
    payload = file.message_type.add(name="Payload")
    made: dict[str, Any] = {"": payload}
    for name in sorted(_MESSAGES):  # the outer ones first
        if name:
            outer, _, last = name.rpartition(".")
            made[name] = made[outer].nested_type.add(name=last)
    for name, fields in _MESSAGES.items():
        _fill(made[name], fields.split())
    return file


def _fill(message: Any, fields: list[str]) -> None:
    number, oneof = 0, False
    for field in fields:
        if field == "|":
            oneof = True
            message.oneof_decl.add(name="value")
            continue
        number += 1
        name, _, kind = field.partition(":")
        one = message.field.add(
            name=name.rstrip("*"),
            number=number,
            label=3 if name.endswith("*") else 1,
            type=_TYPES.get(kind, _TYPES["message"]),
        )
        if kind not in _TYPES:
            one.type_name = f".org.eclipse.tahu.protobuf.Payload.{kind}"
        if oneof:
            one.oneof_index = 0
    message.extension_range.add(start=number + 1, end=1 << 29)


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_descriptor())
Payload: Any = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName("org.eclipse.tahu.protobuf.Payload")
)


def parsed(content: bytes) -> Any:
    """The payload. Raises google.protobuf.message.DecodeError."""
    found = Payload()
    found.ParseFromString(content)
    return found


def command(*writes: tuple[str | int, Any], timestamp_ms: int | None = 1_732_280_000_000) -> bytes:
    """An NCMD: what is to be written, by name or alias."""
    made = Payload()
    if timestamp_ms is not None:
        made.timestamp = timestamp_ms
    for name, value in writes:
        one = made.metrics.add()
        if isinstance(name, int):
            one.alias = name
        else:
            one.name = name
        kinds = {
            bool: "boolean_value",
            int: "long_value",
            str: "string_value",
            float: "double_value",
        }
        if value is None:
            one.is_null = True
        else:
            setattr(one, kinds[type(value)], value)
    return bytes(made.SerializeToString())
