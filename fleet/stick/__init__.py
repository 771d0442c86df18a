"""Bundles from sticks: verified, stored, acknowledged."""
