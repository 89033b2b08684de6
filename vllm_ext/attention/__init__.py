"""The attention layer and the in-tree attention backends."""
