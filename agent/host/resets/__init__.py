"""Reset hooks: what ends a machine that does not end by itself, from outside or from below.

`programs` are executables, `gpio` is a line, `resets` has them all in their order. They run as the
agent's user; what needs root is asked of the root daemon.
"""
