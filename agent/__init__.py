"""Holdfast on the device: hears, keeps, delivers, and gets itself up again."""

VERSION = "0.1.0"
