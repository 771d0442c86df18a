"""As agent/health/power."""
