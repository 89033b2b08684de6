"""From the states of tokens to one result for a prompt."""
