"""What may stand in the places of a path, by their names: one name means one thing everywhere.

A place that is not named here takes any text.
"""

from typing import Annotated, Any

from msgspec import Meta

from agent.forms import ModelName, Name
from agent.store.streams import SEQ_MAX

JobId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)",
        description="an id of 1 to 64 letters, digits, ., _ and -",
    ),
]
Seq = Annotated[int, Meta(ge=1, le=SEQ_MAX, description="the number of a record in its stream")]
Source = Annotated[str, Meta(min_length=1, description="the name of a source of sound")]
Take = Annotated[int, Meta(ge=1, le=SEQ_MAX, description="the number of a take of its source")]
TokenId = Annotated[str, Meta(min_length=1, description="the id of a token, 8 digits of 0-9a-f")]
PART_MAX = 999_999_999
VERSION_MAX = 999_999_999
PLACES: dict[str, Any] = {
    "domain": Name,
    "model": ModelName,
    "job": JobId,
    "seq": Seq,
    "source": Source,
    "take": Take,
    "id": TokenId,
    "part": Annotated[int, Meta(ge=1, le=PART_MAX, description="which part, from 1")],
    "version": Annotated[int, Meta(ge=0, le=VERSION_MAX, description="a version of the model")],
    "stream": Annotated[
        str,
        Meta(min_length=1, description="the name of a stream, as mic.raw; none is called verify"),
    ],
    "export": Annotated[
        str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)", description="the export that was begun last")
    ],
}
