"""The embedded engine: requests, scheduler, KV cache blocks, executors, and the ``LLM`` in front of them."""
