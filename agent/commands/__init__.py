"""Commands: the journal that makes one effect of each, and what can be ordered."""
