"""The in-tree executors, each an entry point of group ``vllm_ext.executors``."""
