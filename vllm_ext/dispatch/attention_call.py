"""How a platform is asked for its attention backend: by today's signature, or by the one it was written with."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from vllm_ext.contracts.platform import AttentionSelectorConfig, Platform
from vllm_ext.errors import ContractError, dotted_path
from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum

Question = Callable[[AttentionBackendEnum | None, AttentionSelectorConfig, int], Any]

_TODAY = ("attn_selector_config", "num_heads")
_KNOWN = {*_TODAY, *AttentionSelectorConfig._fields, "use_v1"}


def attention_question(platform: Platform) -> Question:
    """What asks ``platform.get_attn_backend_cls``; how that is called is worked out here, once.

    Effects: a ``DeprecationWarning`` where it has the parameter ``use_v1``, or the fields of the selector one by one.

    Raises:
        ContractError: it requires parameters that no version of vLLM gave.
    """
    method = platform.get_attn_backend_cls
    names = list(_arguments(platform, inspect.signature(method)))
    if "use_v1" in names or "attn_selector_config" not in names:
        warnings.warn(
            f"{_hook_path(platform)}: parameters such as use_v1 are deprecated, and vllm_ext 0.3.0 will not give them; "
            "use get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None)",
            DeprecationWarning,
            stacklevel=2,
        )

    def ask(selected: AttentionBackendEnum | None, selector: AttentionSelectorConfig, num_heads: int) -> Any:
        values = {**selector._asdict(), "use_v1": True, "attn_selector_config": selector, "num_heads": num_heads}
        return method(selected, **{name: values[name] for name in names})

    return ask


def _arguments(platform: Platform, signature: inspect.Signature) -> Iterator[str]:
    """Names of the arguments to give after the first one."""
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from (name for name in _TODAY if name not in signature.parameters)
        elif parameter.name in _KNOWN:
            yield parameter.name
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            raise ContractError(
                f"{_hook_path(platform)} requires {parameter.name!r}, which is not known; its signature is "
                "(cls, selected_backend, attn_selector_config, num_heads=None)",
                plugin=platform._chosen_as[0] or platform.device_name,
            )


def _hook_path(platform: Platform) -> str:
    cls = type(platform)
    return f"{dotted_path(cls)}.get_attn_backend_cls"
