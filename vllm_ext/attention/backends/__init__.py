"""In-tree attention backends."""
