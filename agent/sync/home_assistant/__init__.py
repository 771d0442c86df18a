"""The device as entities of Home Assistant; optional (docs/home-assistant.md)."""
