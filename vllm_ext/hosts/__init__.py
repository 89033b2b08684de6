"""A real vLLM as the host: the plan as what that vLLM understands. Nothing of it is patched."""

from vllm_ext.hosts.prepare import Prepared, prepare
from vllm_ext.hosts.unpassed import unpassed_settings

__all__ = ["Prepared", "prepare", "unpassed_settings"]
