"""The agent's two slots: which version runs, which could, and what root does about it.

`layout` is what lies there, as anybody may read it, and `build` the program of root's that puts a
signed version into the slot that does not run. Which slot runs is provisioning/slots.sh alone to
say: it needs nothing of either version.
"""
