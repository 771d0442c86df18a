"""The watchdog: fed by progress, and what is done where there is none (promise 10)."""
