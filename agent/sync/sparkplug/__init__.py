"""The device as an edge node of Sparkplug B, for SCADA hosts; optional (docs/sparkplug.md)."""
