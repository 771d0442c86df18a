"""The local HTTP doors; thin: parse, call, render."""
