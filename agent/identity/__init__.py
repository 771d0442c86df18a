"""Who this device is to its broker: its key and certificate, and how they are replaced."""
