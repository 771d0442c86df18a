"""Why the agent began, how often that may be, and what it does without when it is too often."""
