"""Example stat loggers."""
