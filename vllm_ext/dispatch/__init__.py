"""From a plan to a running engine's parts: what every process does first, and who builds what."""
