"""The way over an air gap: records out and acks back in bundles."""
