"""A bundle of commands: how orders cross an air gap, signed as a whole for one device.

It is made and read in memory: ACK_BUNDLE_BYTES_MAX of it, COMMANDS_MAX commands.
"""

import io
import secrets
from collections.abc import Sequence

import msgspec

from agent.errors import BundleError
from agent.protocol import bundle, signing
from agent.protocol.commands import Command, Unread, decode

COMMANDS_MAX = 1000


def made(device: str, commands: Sequence[Command], key: signing.Key, created: str) -> bytes:
    """The bundle; `created` is a wall label (ISO 8601, UTC)."""
    assert len(commands) <= COMMANDS_MAX, len(commands)
    header = bundle.Header(
        kind="commands",
        device=device,
        export=secrets.token_hex(8),
        part=1,
        by=key.public,
        created=created,
    )
    writer = bundle.Writer(header, key)
    content = writer.begin()
    for command in commands:
        content += writer.frame(bundle.COMMAND, msgspec.json.encode(command))
    return content + writer.end(
        bundle.Footer(frames=len(commands), records=0, blob_bytes=0, covers={})
    )


def read(content: bytes) -> list[Command | Unread]:
    """The commands of a bundle that `bundle.verify` found whole; what is none says why.

    Raises BundleError.
    """
    found: list[Command | Unread] = []
    for _, payload in bundle.frames(io.BytesIO(content)):
        try:
            found.append(decode(payload).command)
        except Unread as error:
            found.append(error)
    if len(found) > COMMANDS_MAX:
        raise BundleError(
            f"the bundle has {len(found)} commands; expected {COMMANDS_MAX} at most",
            "make several of it",
            "damaged",
        )
    return found
