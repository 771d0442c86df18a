"""Measurements. `python -m bench.NAME` prints a table, `--json` one object; see `report.py`."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # what is measured beside the agent tells nobody either
