"""Domains: child processes with their models, limits and restart rules."""
