"""A platform's configuration hooks, and a record of what they changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm_ext.contracts.block_sizes import describe_block_sizes
from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.config_values import added_names, as_texts, copied, flatten, shown
from vllm_ext.dispatch.hook_checks import check_added_attributes, check_hook_values
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.errors import ConfigError, innermost_cause

logger = logging.getLogger(__name__)

THREADS_VARIABLE = "OMP_NUM_THREADS"
THREADS_AT_START = os.environ.get(THREADS_VARIABLE)
"""What this process began with, before any plugin ran. Torch has read it by the time of a hook; another value since
then is meant for the processes that are still to be started."""


class Change(NamedTuple):
    """A field of the configuration that a hook changed; ``origin`` is ``platform:NAME``."""

    path: str
    before: Any
    after: Any
    origin: str
    hook: str
    is_field: bool = True
    """Whether the configuration has such a field; on what a hook adds, the engine does not act."""

    @property
    def plugin(self) -> str:
        """Name of the platform plugin."""
        return self.origin.partition(":")[2]


_OF_EACH_PROCESS = (
    "cache_config.kv_cache_memory_bytes",
    "cache_config.num_gpu_blocks",
    "load_config.use_tqdm_on_load",
    "parallel_config.rank",
)
"""Fields in which processes of one engine may differ: their place in it, what memory they have, who shows progress."""


def hook_values(changes: Iterable[Change]) -> dict[str, str]:
    """What the hooks made of the fields that have to be the same in all processes, as texts by path."""
    return as_texts({change.path: change.after for change in changes if _is_common(change)})


def values_before_hooks(changes: Iterable[Change]) -> dict[str, str]:
    """What the same fields held before the first hook."""
    return as_texts({change.path: change.before for change in reversed(tuple(changes)) if _is_common(change)})


def _is_common(change: Change) -> bool:
    return change.is_field and change.path not in _OF_EACH_PROCESS


def prepare_platform(platform: Platform) -> None:
    """The hooks that come before there is a configuration, in vLLM's order."""
    with platform_code(platform):
        platform.log_warnings()
        platform.pre_register_and_update()
        platform.validate_environ(hard_fail=False)


def run_platform_hooks(platform: Platform, vllm_config: VllmConfig, origin: str) -> tuple[Change, ...]:
    """Let the platform look at ``vllm_config`` and change it, in vLLM's order of hooks.

    Each hook that may change it is run a second time, on a copy, since vLLM does so in other processes: what changes
    again is a warning.

    Args:
        origin: names the platform as the origin of what it changes.

    Raises:
        ContractError: a hook has set a field to what it does not take.
        ConfigError: a hook refuses the configuration, or has set a field of vLLM without which the engine would do
            wrong.
    """
    model_config, scheduler_config = vllm_config.model_config, vllm_config.scheduler_config
    changes: list[Change] = []
    with platform_code(platform, may_refuse=True):
        changes += _run_hook(platform, "apply_config_platform_defaults", vllm_config, origin)
        if platform.support_static_graph_mode() and not model_config.enforce_eager:
            vllm_config.compilation_config.cudagraph_mode = "FULL_AND_PIECEWISE"
        for arch in model_config.architectures:
            platform.verify_model_arch(arch)
        changes += _run_hook(platform, "check_and_update_config", vllm_config, origin)
        check_hook_values(vllm_config, changes, platform)
        check_added_attributes(vllm_config, changes)
        scheduler_config.disable_hybrid_kv_cache_manager |= not platform.support_hybrid_kv_cache()
    for hook in ("apply_config_platform_defaults", "check_and_update_config"):
        _run_again(platform, hook, vllm_config, origin)
    return tuple(changes)


def update_block_size(platform: Platform, vllm_config: VllmConfig, origin: str) -> tuple[Change, ...]:
    """Let the platform choose the size of KV cache blocks for the model that is loaded now.

    Raises:
        ConfigError: it refuses the configuration; or an attention layer does not support what it chose, or left.
        ContractError: it chose no number of tokens.
    """
    with platform_code(platform, may_refuse=True):
        changes = _run_hook(platform, "update_block_size_for_backend", vllm_config, origin)
        check_hook_values(vllm_config, changes, platform)
    block_size = vllm_config.cache_config.block_size
    for name, layer in vllm_config.compilation_config.static_forward_context.items():
        if hasattr(layer, "attn_backend") and not layer.attn_backend.supports_block_size(block_size):
            raise ConfigError(
                f"attention backend {layer.attn_backend.get_name()!r} of layer {name!r} does not support KV cache "
                f"blocks of {block_size} tokens; set engine.block_size to a size that it supports: "
                f"{describe_block_sizes(layer.attn_backend)}"
            )
    return changes


def _run_hook(platform: Platform, hook: str, vllm_config: VllmConfig, origin: str) -> tuple[Change, ...]:
    before = flatten(vllm_config)
    getattr(platform, hook)(vllm_config)
    after, added = flatten(vllm_config), added_names(vllm_config)
    return tuple(
        Change(path, before.get(path), after.get(path), origin, hook, path not in added)
        for path in dict.fromkeys((*after, *before))
        if _differs(before.get(path), after.get(path))
    )


def _differs(before: Any, after: Any) -> bool:
    """Whether a hook changed a value; ``16.0`` in place of ``16`` counts, and so does a tensor, which is no bool."""
    try:
        return type(before) is not type(after) or bool(before != after)
    except Exception:  # noqa: BLE001 - of objects that cannot be compared
        return before is not after


def _run_again(platform: Platform, hook: str, vllm_config: VllmConfig, origin: str) -> None:
    """Warn where a second run of the hook changes more, or fails; ``vllm_config`` stays as it is."""
    try:
        changes = [change for change in _run_hook(platform, hook, copied(vllm_config), origin) if change.is_field]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the first run was fine, and is what holds
        problem = f"fails in a second run: {innermost_cause(error)}"
    else:
        if not changes:
            return
        problem = "changes more in a second run: " + "; ".join(
            f"{change.path} from {shown(change.path, change.before)} to {shown(change.path, change.after)}"
            for change in changes
        )
    logger.warning("%s: %s() %s. It has to be idempotent, since vLLM runs it more than once", origin, hook, problem)
