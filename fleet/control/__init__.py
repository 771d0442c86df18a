"""The controller: orders to devices, their results, rollouts; over the public protocol alone."""
