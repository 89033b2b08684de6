"""From the tokens of a step to what the user gets."""
