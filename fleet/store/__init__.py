"""What is stored: exactly once, in SQLite or PostgreSQL; acks, gaps, refusals."""
