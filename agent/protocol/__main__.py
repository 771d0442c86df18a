"""`python -m agent.protocol` writes the AsyncAPI document."""

import sys

from agent.protocol.asyncapi import text

if __name__ == "__main__":
    sys.stdout.buffer.write(text())
