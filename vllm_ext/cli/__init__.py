"""The ``vllm-ext`` command."""
