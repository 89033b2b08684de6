"""What hooks put into the configuration is checked as settings are: an engine would fail on it later, or never end."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm_ext.config.keys import all_keys, shorten
from vllm_ext.contracts.attention import dtype_name
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.hf_config import own_max_model_len
from vllm_ext.errors import ContractError

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform
    from vllm_ext.dispatch.hooks import Change

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
}
"""Fields that take what a setting takes."""
_ALWAYS_SET = ("model_config.max_model_len",)
"""Of these, fields that are never ``None`` where the setting may be null."""


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


def _wanted(vllm_config: VllmConfig, change: Change, platform: Platform) -> str:
    """What the field takes where it does not take what the hook set; otherwise empty."""
    path, value = change.path, change.after
    if path == "model_config.dtype":
        return _wanted_dtype(value, platform)
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
    _set(vllm_config, path, converted)
    return ""


def _wanted_dtype(value: Any, platform: Platform) -> str:
    import torch

    supported = list(platform.supported_dtypes)
    if isinstance(value, torch.dtype) and value in supported:
        return ""
    return f"a torch.dtype that the platform supports: {', '.join(f'torch.{dtype_name(d)}' for d in supported)}"


def _as_int(value: Any) -> Any:
    """A whole number of another library, such as numpy, as Python's."""
    if isinstance(value, bool | str | None):
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return value


def _set(vllm_config: VllmConfig, path: str, value: Any) -> None:
    section, _, field = path.partition(".")
    setattr(getattr(vllm_config, section), field, value)
