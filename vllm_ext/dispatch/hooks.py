"""A platform's configuration hooks, and a record of what they changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import PluginLoadError, VllmExtError, innermost_cause


class Change(NamedTuple):
    """A field of the configuration that a hook changed; ``origin`` is ``platform:NAME``."""

    path: str
    before: Any
    after: Any
    origin: str


def run_platform_hooks(platform: Platform, vllm_config: VllmConfig, origin: str) -> tuple[Change, ...]:
    """Let the platform look at ``vllm_config`` and change it, in vLLM's order of hooks.

    ``origin`` names the platform as the origin of what it changes.
    """
    before = _flatten(vllm_config)
    with platform_code(platform):
        platform.log_warnings()
        platform.pre_register_and_update()
        platform.apply_config_platform_defaults(vllm_config)
        for arch in vllm_config.model_config.architectures:
            platform.verify_model_arch(arch)
        platform.check_and_update_config(vllm_config)
    after = _flatten(vllm_config)
    return tuple(
        Change(path, before.get(path), value, origin) for path, value in after.items() if value != before.get(path)
    )


@contextmanager
def platform_code(platform: Platform) -> Iterator[None]:
    """Around calls of the platform's own methods: whatever they raise becomes an error that names the platform.

    Errors of vllm_ext pass, since that is how a platform refuses a configuration.
    """
    try:
        yield
    except (VllmExtError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a hook that exits or asserts fails like any other
        cls = type(platform)
        raise PluginLoadError(
            f"platform {platform.device_name!r} ({cls.__module__}.{cls.__qualname__}) failed: {innermost_cause(error)}",
            plugin=platform.device_name,
        ) from error


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
