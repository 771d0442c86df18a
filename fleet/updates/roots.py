"""The root document that a device's trust in updates begins with."""

from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from agent.errors import RequestError


def root_text(file: Path) -> str:
    """The text of a root document that its own keys have signed. Raises RequestError."""
    try:
        content = file.read_bytes()
        found: Metadata[Root] = Metadata.from_bytes(content)
        wrong = "" if isinstance(found.signed, Root) else f"it is {found.signed.type} metadata"
        if not wrong:
            found.signed.verify_delegate(Root.type, found.signed_bytes, found.signatures)
    except (OSError, RepositoryError) as error:
        wrong = str(error)
    if wrong:
        raise RequestError(
            f"--tuf-root {file}: {wrong}; expected the root of a repository of updates",
            "name the 1.root.json in metadata/ of the folder that `updates init` has made",
        )
    return content.decode()
