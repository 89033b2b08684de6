"""A platform's configuration hooks, and a record of what they changed."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.vllm_config import VllmConfig


class Change(NamedTuple):
    """A field of the configuration that a hook changed; ``origin`` is ``platform:NAME``."""

    path: str
    before: Any
    after: Any
    origin: str


def run_platform_hooks(platform: Platform, vllm_config: VllmConfig) -> tuple[Change, ...]:
    """Let the platform look at ``vllm_config`` and change it, in vLLM's order of hooks."""
    before = _flatten(vllm_config)
    platform.log_warnings()
    platform.pre_register_and_update()
    platform.apply_config_platform_defaults(vllm_config)
    for arch in vllm_config.model_config.architectures:
        platform.verify_model_arch(arch)
    platform.check_and_update_config(vllm_config)
    after = _flatten(vllm_config)
    origin = f"platform:{platform.device_name}"
    return tuple(
        Change(path, before.get(path), value, origin) for path, value in after.items() if value != before.get(path)
    )


def _flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf fields of nested dataclasses by dotted path; lists and mappings are copied, since hooks change them."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            flat.update(_flatten(value, f"{path}."))
        else:
            flat[path] = value.copy() if isinstance(value, list | dict) else value
    return flat
