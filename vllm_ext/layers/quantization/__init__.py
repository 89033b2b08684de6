"""In-tree quantization methods; they are reached through the registry, by name."""
