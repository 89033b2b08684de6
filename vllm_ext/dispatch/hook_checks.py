"""What hooks put into the configuration is checked as settings are: an engine would fail on it later, or never end."""

from __future__ import annotations

import enum
import functools
import logging
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm_ext.config.keys import all_keys, shorten
from vllm_ext.contracts.attention import dtype_name
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.config_values import added_names
from vllm_ext.dispatch.hf_config import own_max_model_len
from vllm_ext.dispatch.scheduler import OWN_SCHEDULER
from vllm_ext.errors import ConfigError, ContractError, did_you_mean

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform
    from vllm_ext.dispatch.hooks import Change

logger = logging.getLogger(__name__)

_AS_SETTINGS = {
    "cache_config.block_size": "engine.block_size",
    "cache_config.enable_prefix_caching": "engine.enable_prefix_caching",
    "cache_config.kv_cache_memory_bytes": "engine.kv_cache_memory",
    "model_config.enforce_eager": "engine.enforce_eager",
    "model_config.max_model_len": "engine.max_model_len",
    "model_config.seed": "engine.seed",
    "parallel_config.tensor_parallel_size": "engine.tensor_parallel_size",
    "scheduler_config.max_num_batched_tokens": "engine.max_num_batched_tokens",
    "scheduler_config.max_num_seqs": "engine.max_num_seqs",
    "scheduler_config.policy": "engine.scheduling_policy",
}
"""Fields that take what a setting takes."""
_GRAPH_MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
"""vLLM's names."""
_ALWAYS_SET = ("model_config.max_model_len",)
"""Of these, fields that are never ``None`` where the setting may be null."""
_UNKNOWN = object()
_WHOLE_PROMPTS = ("scheduler_config.enable_chunked_prefill", "scheduler_config.chunked_prefill_enabled")


def check_hook_values(vllm_config: VllmConfig, changes: Iterable[Change], platform: Platform) -> None:
    """Check the fields that hooks changed; a whole number of another library becomes one of Python.

    Raises:
        ContractError: some hold what they do not take; the text has all of them, with the platform plugin and the hook.
    """
    problems = []
    for change in {change.path: change for change in changes}.values():
        wanted = _wanted(vllm_config, change, platform)
        if wanted:
            problems.append((change, wanted))
    if problems:
        text = "; ".join(
            f"{change.hook}() sets {change.path} to {shorten(repr(change.after))}, which takes {wanted}"
            for change, wanted in problems
        )
        plugin = problems[0][0].plugin
        raise ContractError(f"platform plugin {plugin!r}: {text}", plugin=plugin)


def check_added_attributes(vllm_config: VllmConfig, changes: Iterable[Change]) -> None:
    """Warn of attributes that hooks gave to the configuration and that are no fields of it, once for each hook.

    A platform's own worker may read them, and most fields of vLLM that are missing here are about speed.

    Raises:
        ConfigError: the engine would do wrong without acting on it.
    """
    names = added_names(vllm_config)
    last = {change.path: change for change in changes if not change.is_field and change.path in names}
    by_hook: dict[tuple[str, str], list[str]] = {}
    for path, change in last.items():
        if reason := _why_needed(vllm_config, path, change.after):
            raise ConfigError(
                f"platform plugin {change.plugin!r}: {change.hook}() sets {path} to {shorten(repr(change.after))}, "
                f"and {reason}"
            )
        if not _is_so_here(vllm_config, path, change.after):
            hint = did_you_mean(path.rpartition(".")[2], names[path])
            by_hook.setdefault((change.plugin, change.hook), []).append(f"{path}{hint}")
    for (plugin, hook), found in by_hook.items():
        logger.warning(
            "platform plugin %r: %s() sets what the configuration does not have, and vllm-ext does not act on it: %s",
            plugin,
            hook,
            ", ".join(found),
        )


def _is_so_here(vllm_config: VllmConfig, path: str, value: Any) -> bool:
    """Whether the platform asks for what it gets: what is no field may still be known, with a value that stays."""
    *owners, name = path.split(".")
    stays = getattr(type(functools.reduce(getattr, owners, vllm_config)), name, _UNKNOWN)
    return bool(stays == value)


def _why_needed(vllm_config: VllmConfig, path: str, value: Any) -> str:
    """Why an engine that passes over this would give other results, or break the worker; empty where it would not."""
    scheduler_cls, hf_config = vllm_config.scheduler_config.scheduler_cls, vllm_config.model_config.hf_config
    if path in _WHOLE_PROMPTS and not value and scheduler_cls in ("auto", OWN_SCHEDULER):
        return (
            "the scheduler computes long prompts in parts; a platform whose worker takes whole prompts only names a "
            "scheduler of its own in scheduler_config.scheduler_cls"
        )
    if path == "cache_config.sliding_window" and value != hf_config.get("sliding_window"):
        return (
            "attention windows are those of the model's config.json here; a hook changes them in "
            "model_config.hf_config.sliding_window"
        )
    return ""


def _wanted(vllm_config: VllmConfig, change: Change, platform: Platform) -> str:
    """What the field takes where it does not take what the hook set; otherwise empty."""
    path, value = change.path, change.after
    if path == "model_config.dtype":
        return _wanted_dtype(value, platform)
    if path == "compilation_config.cudagraph_mode":
        return _wanted_graph_mode(vllm_config, value)
    if path not in _AS_SETTINGS:
        return ""
    key = all_keys()[_AS_SETTINGS[path]]
    alternatives = [text for text in key.expected.split(", or ") if path not in _ALWAYS_SET or text != "null"]
    expected = ", or ".join("None" if text == "null" else text for text in alternatives)
    try:
        converted = key.convert(_as_int(value))
    except ValueError:
        return expected
    if converted is None:
        return expected if path in _ALWAYS_SET else ""
    if path == "model_config.max_model_len":
        own = own_max_model_len(vllm_config.model_config.hf_config)
        if own is not None and converted > own:
            source = vllm_config.model_config.hf_config.source
            return f"at most the {own} positions of the model ({source})"
    _replace(vllm_config, path, value, converted)
    return ""


def _wanted_dtype(value: Any, platform: Platform) -> str:
    import torch

    supported = list(platform.supported_dtypes)
    if isinstance(value, torch.dtype) and value in supported:
        return ""
    return f"a torch.dtype that the platform supports: {', '.join(f'torch.{dtype_name(d)}' for d in supported)}"


def _wanted_graph_mode(vllm_config: VllmConfig, value: Any) -> str:
    """``value`` may be a member of an enumeration with the same names, as vLLM's is."""
    mode = value.name if isinstance(value, enum.Enum) else value
    if mode not in _GRAPH_MODES:
        return f"one of {', '.join(_GRAPH_MODES)}{did_you_mean(str(mode), _GRAPH_MODES)}"
    _replace(vllm_config, "compilation_config.cudagraph_mode", value, mode)
    return ""


def _as_int(value: Any) -> Any:
    """A whole number of another library, such as numpy, as Python's."""
    if isinstance(value, bool | str | None):
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return value


def _replace(vllm_config: VllmConfig, path: str, value: Any, converted: Any) -> None:
    """Put ``converted`` in the place of ``value``, unless the engine itself has set the field since."""
    section, _, field = path.partition(".")
    config = getattr(vllm_config, section)
    if getattr(config, field) is value:
        setattr(config, field, converted)
