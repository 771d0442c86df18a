"""Measurements. `python -m bench.NAME` prints a table, `--json` one object; see `report.py`."""
