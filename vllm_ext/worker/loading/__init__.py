"""A model built, and its weights read: checkpoints, the loaders of them, and weights quantized on the way."""
