"""In-tree platforms."""
