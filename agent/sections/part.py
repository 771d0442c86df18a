"""What every section of the configuration is."""

from msgspec import Struct


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the file; an unknown key in it is an error."""
