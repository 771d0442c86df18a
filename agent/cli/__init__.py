"""The technician's command. It talks to the agent's socket and never opens the store."""
