"""Who gets in: connections in their places, names answered to, callers and their scopes."""
