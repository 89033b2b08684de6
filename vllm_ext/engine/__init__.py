"""The embedded engine: ``LLM`` and ``AsyncLLM``, which users call, and in folders the parts that they are made of."""
