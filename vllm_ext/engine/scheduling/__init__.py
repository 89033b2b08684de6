"""Which requests run in the next step, and which of them owns which blocks of the KV cache."""
