"""Who is who: a small certificate authority, and what a device is enrolled with."""
