"""What device and cloud both speak: topics, envelopes, acks. On bytes alone, no transport."""
