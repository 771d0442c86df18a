"""What the values of the configuration, and of the doors, look like.

A number's bounds and a text's pattern, with the words in which a mistake is explained.
"""

from typing import Annotated, Literal

from msgspec import Meta

Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$(?!\n)",
        description="a name of 1 to 32 letters a-z, digits, - and _",
    ),
]
ModelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$(?!\n)",
        description="the name of a model's folder: 1 to 128 letters, digits, -, _ and .",
    ),
]
SECONDS_MIN, SECONDS_MAX = 0.01, 31_536_000  # up to a year; below, it is no rest
Seconds = Annotated[float, Meta(ge=SECONDS_MIN, le=SECONDS_MAX)]
Share = Annotated[float, Meta(ge=0, le=1)]
Portion = Annotated[float, Meta(gt=0, le=1)]
Device = Literal["tensorrt", "cuda", "cpu"]
CpuSet = Annotated[
    str,
    Meta(pattern=r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$(?!\n)", description="CPUs, as 0-3,6"),
]
BYTES_MAX = 10**15  # so that no sum of numbers of bytes is more than SQLite takes
RATE_BYTES_PER_S_MIN, RATE_BYTES_PER_S_MAX = 1024, 10**12
Rate = Annotated[int, Meta(ge=RATE_BYTES_PER_S_MIN, le=RATE_BYTES_PER_S_MAX)]  # bytes in a second
TimeOfDay = Annotated[
    str,
    Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$(?!\n)", description="a time of day, 00:00 to 23:59"),
]
Address = Annotated[
    str,
    Meta(
        pattern=r"^(\d{1,3}(\.\d{1,3}){3}|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)$(?!\n)",
        description="an IPv4 or IPv6 address, as 192.168.1.5; 0.0.0.0 or :: is all",
    ),
]
Port = Annotated[int, Meta(ge=0, le=65535)]
Keep = Literal["segments", "all"]
Scope = Literal["read", "infer", "operate", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "infer", "operate", "admin")  # none implies another
PACKET_BYTES_MAX = 16 * 1024**2  # an ingest takes no larger one
PACKET_ROOM_BYTES = 1024  # of a packet for all but its payload
PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_MAX = 8192, PACKET_BYTES_MAX - PACKET_ROOM_BYTES
_PORT = r"[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]"
BROKER_URL = rf"^mqtts?://([^][:/?#@\s]+|\[[0-9A-Fa-f:.]+\])(:({_PORT}))?/?$(?!\n)"
BROKER_FORM = "mqtt://HOST, mqtts://HOST or either with :PORT, 1 to 65535"
Broker = Annotated[str, Meta(pattern=BROKER_URL, description=BROKER_FORM)]
Payload = Annotated[
    int,
    Meta(
        ge=PAYLOAD_BYTES_MIN,
        le=PAYLOAD_BYTES_MAX,
        description=f"{PAYLOAD_BYTES_MIN:,} to {PAYLOAD_BYTES_MAX:,} bytes: an ingest takes "
        f"packets of {PACKET_BYTES_MAX >> 20} MiB at most",
    ),
]
Prefix = Annotated[
    str,
    Meta(pattern=r"^[^+#\s]+[^/+#\s]$(?!\n)", description="a topic without + and #, as plant/7"),
]
DeviceId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)",
        description="a name of 1 to 64 letters, digits, -, _ and .",
    ),
]


AgeRecipient = Annotated[
    str,
    Meta(
        pattern=r"^(age1[0-9a-z]+|ssh-(ed25519|rsa) \S.*)$(?!\n)",
        description="a recipient of age: age1..., or a public key of ssh",
    ),
]
PublicKey = Annotated[
    str,
    Meta(
        pattern=r"^hf1pub:[A-Za-z0-9+/]{43}=$(?!\n)",
        description="a public key, hf1pub:..., as `holdfast-fleet bundle key` prints it",
    ),
]
Tag = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$(?!\n)",
        description="a word of 1 to 64 letters, digits, _, ., : and -",
    ),
]
