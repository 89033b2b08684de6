"""Which quantization method an engine uses: the setting's or the checkpoint's, as far as the platform can run it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.attention import dtype_name
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.contracts.quantization import QuantizationConfig, get_quantization_config
from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.dispatch.hf_config import read_json_object
from vllm_ext.dispatch.hooks import Change
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.errors import (
    CheckpointError,
    ConfigError,
    ContractError,
    PluginLoadError,
    UnsupportedModel,
    VllmExtError,
    did_you_mean,
    dotted_path,
    innermost_cause,
    listing,
)
from vllm_ext.registry.quantization import QUANTIZATION_METHODS

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.platform import Platform

KEY = "engine.quantization"
_MADE_OF = ("model_config.quantization", "model_config.dtype", "model_config.hf_config.quantization_config")
"""Fields from which ``quant_config`` is made."""


def quantization_of(wanted: str | None, hf_config: HFConfig, named_by: str = KEY) -> str | None:
    """The name of the method: the setting's, or what the checkpoint is quantized with; ``None`` where neither is.

    Args:
        named_by: who names ``wanted``, for messages.

    Raises:
        ConfigError: the two differ.
        CheckpointError: the checkpoint's ``quantization_config`` names none.
    """
    stored = _stored(hf_config)
    if stored is None:
        return wanted
    own: str = stored["quant_method"]
    if wanted not in (None, own):
        raise ConfigError(
            f"{named_by} is {wanted!r}, and the checkpoint is quantized with {own!r} ({hf_config.source}); leave that "
            "to the checkpoint, or use the model's unquantized one"
        )
    return own


def make_quant_config(
    wanted: str | None, hf_config: HFConfig, dtype: torch.dtype, platform: Platform, named_by: str = KEY
) -> QuantizationConfig | None:
    """The method that :func:`quantization_of` names, checked against dtype and platform; ``None`` where it names none.

    Raises:
        PluginNotFound: the setting names a method that nobody registered.
        UnsupportedModel: the checkpoint does.
        ConfigError: the platform, its device or the model's dtype do not go with it.
        PluginLoadError, ContractError: its class cannot be imported, or fails.
    """
    name = quantization_of(wanted, hf_config, named_by)
    if name is None:
        return None
    if wanted is None and QUANTIZATION_METHODS.find(name) is None:
        known = QUANTIZATION_METHODS.names()
        raise UnsupportedModel(
            f"{hf_config.source}: the checkpoint is quantized ({name!r}{did_you_mean(name, known)}), and no such "
            f"method is registered; registered: {listing(known)}. Use the model's unquantized checkpoint, or a plugin "
            "that registers it"
        )
    with platform_code(platform, may_refuse=True):
        platform.verify_quantization(name)
    cls = get_quantization_config(name, named_by=named_by)
    if missing := cls.__abstractmethods__:
        raise ContractError(f"quantization {name!r}: {dotted_path(cls)} does not implement {listing(sorted(missing))}")
    with _method_code(name, hf_config):
        config = _build(cls, hf_config)
        supported = config.get_supported_act_dtypes()
        least = config.get_min_capability()
    if dtype not in supported:
        raise ConfigError(
            f"quantization {name!r} does not compute in {dtype_name(dtype)}; it supports: "
            f"{', '.join(dtype_name(each) for each in supported) or 'none'}. Set engine.dtype to one of these"
        )
    with platform_code(platform):
        capability = platform.get_device_capability(0)
    if capability is not None and capability.major * 10 + capability.minor < least:
        raise ConfigError(
            f"quantization {name!r} needs compute capability {least // 10}.{least % 10}, and "
            f"{platform_name(platform)} has {capability.as_version_str()}"
        )
    return config


def update_quant_config(vllm_config: VllmConfig, changes: Iterable[Change], platform: Platform) -> None:
    """Make ``quant_config`` again where a hook has changed what it is made of; one that a hook has made itself stays.

    Raises:
        ConfigError: a hook wants no quantization, and the checkpoint is quantized; and as :func:`make_quant_config`.
    """
    model_config, changed = vllm_config.model_config, {change.path: change for change in changes}
    hf_config = model_config.hf_config
    if "quant_config" in changed or not any(path in changed for path in _MADE_OF):
        return
    named_by, change = KEY, changed.get("model_config.quantization")
    if change is not None:
        named_by = f"platform plugin {change.plugin!r}: model_config.quantization, set by {change.hook}(),"
        if change.after is None and (stored := _stored(hf_config)) is not None:
            raise ConfigError(
                f"{named_by} is None, and the checkpoint is quantized with {stored['quant_method']!r} "
                f"({hf_config.source}); use the model's unquantized checkpoint"
            )
    wanted = model_config.quantization
    vllm_config.quant_config = make_quant_config(wanted, hf_config, model_config.dtype, platform, named_by)
    model_config.quantization = quantization_of(wanted, hf_config, named_by)


def _build(cls: type[QuantizationConfig], hf_config: HFConfig) -> QuantizationConfig:
    stored = _stored(hf_config)
    if stored is not None:
        return cls.from_config(stored)
    if hf_config.source is not None:
        for file in cls.get_config_filenames():
            if (path := hf_config.source.parent / file).is_file():
                return cls.from_config(read_json_object(path))
    return cls()


def _stored(hf_config: HFConfig) -> dict[str, Any] | None:
    stored = hf_config.get("quantization_config")
    if stored is None:
        return None
    if not isinstance(stored, dict) or not isinstance(stored.get("quant_method"), str):
        raise CheckpointError(
            f"{hf_config.source}: quantization_config is {stored!r}; it takes an object with a quant_method"
        )
    return stored


@contextmanager
def _method_code(name: str, hf_config: HFConfig) -> Iterator[None]:
    """Around calls of a method's own code, most of which is a plugin's."""
    try:
        yield
    except (VllmExtError, KeyboardInterrupt):
        raise
    except ValueError as error:
        raise CheckpointError(
            f"{hf_config.source}: its configuration for quantization {name!r} cannot be used: {error}"
        ) from error
    except BaseException as error:
        entry = QUANTIZATION_METHODS.find(name)
        owner = entry.owner_text if entry else "nobody"
        raise PluginLoadError(
            f"quantization method {name!r}, registered by {owner}, failed: {innermost_cause(error)}", plugin=owner
        ) from error
