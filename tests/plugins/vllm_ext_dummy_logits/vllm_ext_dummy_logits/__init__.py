"""Example logits processors."""
