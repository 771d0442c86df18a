"""The status page in a real browser, before a real agent."""
