"""Holdfast on the device: hears, keeps, delivers, and gets itself up again."""
