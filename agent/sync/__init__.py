"""The link to the cloud: one connection at a time, what goes up over it, what comes down."""
