"""The agent's own update: a new version beside the one that runs, on trial, back where it fails.

`record` is what the agent remembers of one, `update` the steps until the new version is started,
`trial` how it proves itself there, and `selftest` what it is asked before.
"""
