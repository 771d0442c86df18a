"""The board and the system under the agent."""
