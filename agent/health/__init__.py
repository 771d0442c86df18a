"""How the device is: what holds, since when, why, and what to do about it."""
