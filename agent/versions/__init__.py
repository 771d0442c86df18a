"""Versions of the configuration: kept, applied, on trial, confirmed or taken back."""
