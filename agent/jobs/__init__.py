"""Durable jobs: taken in, run chunk by chunk, and given out again."""
