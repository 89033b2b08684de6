"""What the in-tree worker cannot do without on its platform, found before anything of either is called."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.platform_check import is_inherited
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.errors import ContractError, dotted_path


def check_platform_needs(
    worker_cls: type[WorkerBase], in_tree_cls: type[WorkerBase], platform: Platform, model_config: ModelConfig
) -> None:
    """Compare a platform with what methods of the in-tree worker ask of it; nothing of it is called.

    Args:
        worker_cls: ``in_tree_cls`` or a subclass; what methods that it replaces ask for is its own business.

    Raises:
        ContractError: the platform lacks methods, all of which are in the text.
    """
    missing = [
        name
        for method, name in _needs(platform, model_config)
        if getattr(worker_cls, method) is getattr(in_tree_cls, method) and is_inherited(platform, name)
    ]
    if missing:
        raise ContractError(
            f"{platform_name(platform)} ({dotted_path(type(platform))}) does not implement {', '.join(missing)}, which "
            f"its worker {dotted_path(worker_cls)} asks for",
            plugin=platform_name(platform),
        )


def _needs(platform: Platform, model_config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Methods of the worker, each with one of the platform that it calls and that has no default."""
    if platform.device_type != "cpu":
        yield "init_device", "set_device"
    if is_inherited(platform, "seed_everything"):
        yield "init_device", "manual_seed_all"
    if model_config.runner_type != "pooling":  # an encoder has no KV cache to find memory for
        yield "determine_available_memory", "get_current_memory_usage"
