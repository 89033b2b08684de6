"""Whether a model can be split over the workers, asked before there are any."""

from __future__ import annotations

from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import UnsupportedModel
from vllm_ext.registry.models import ModelRegistry


def check_model_can_be_split(vllm_config: VllmConfig) -> None:
    """Ask the model's class, as far as it can tell from the configuration alone; nothing happens for one rank.

    Raises:
        ConfigError: it cannot; the text names the setting, what stands in the way, and which numbers are possible.
    """
    if vllm_config.parallel_config.tensor_parallel_size == 1:
        return
    try:
        model_cls, _ = ModelRegistry.resolve_model_cls(vllm_config.model_config.architectures)
    except UnsupportedModel:
        # For the worker to say: one of a plugin may run what no registry knows.
        return
    check = getattr(model_cls, "check_tensor_parallel_size", None)
    if check is not None:
        check(vllm_config)
