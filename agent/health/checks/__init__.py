"""Questions that are asked of the running device, a file for each kind."""
