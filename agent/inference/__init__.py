"""Models in processes of their own: the catalog of what is on disk, the domains that run it."""

import os

# Since 1.29 ONNX Runtime for Linux reports to its maker, with a lasting device id and a database
# beneath the home folder. It looks at this once, when it is imported: that comes after this line.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
