"""The sections of the configuration: what can be set in each, and what holds when it is not."""
