"""Recipe of the speech model: sounds, noise, training, INT8 export, model card and samples."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
