"""The ingest: from the broker into the store, and acks back."""
