"""From logits to tokens: the requests' parameters in arrays, logits processors, the draw, log probabilities."""
