"""Processes of one engine: how they are started, what passes between them, and how they end."""
