"""The arguments of ``LLM`` and ``AsyncLLM``: from keywords to a dispatcher, from one value to one for each prompt."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_ext.config import Config, Override, load_config
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

    from vllm_ext.dispatch.dispatcher import Dispatcher


def make_dispatcher(
    caller: str,
    model: str | Path | None,
    engine_settings: dict[str, Any],
    *,
    dtype: str | torch.dtype | None,
    platform: str | list[str] | None,
    config_files: Sequence[str | Path],
    overrides: Mapping[str, Any] | None,
    progress: bool | None,
) -> Dispatcher:
    """A dispatcher for the keywords of ``caller``, by whose name the origin of a setting is shown.

    Raises:
        ConfigError, PluginError, ModelError: settings, platform or model directory do not fit.
    """
    settings = [Override(key, value, f"{caller}(overrides=...)") for key, value in (overrides or {}).items()]
    if model is not None:
        engine_settings = engine_settings | {"model": str(model)}
    if dtype is not None:
        engine_settings = engine_settings | {"dtype": str(dtype).removeprefix("torch.")}
    settings += [Override(f"engine.{name}", value, f"{caller}({name}=...)") for name, value in engine_settings.items()]
    if platform is not None:
        settings.append(Override("platform.driver", platform, f"{caller}(platform=...)"))
    return dispatcher_for(load_config(config_files, settings), progress)


def dispatcher_for(config: Config, progress: bool | None) -> Dispatcher:
    """A dispatcher for settings that are loaded; ``progress`` is shown on a terminal where it is ``None``."""
    return bootstrap(config).dispatcher(progress=sys.stderr.isatty() if progress is None else progress)


def params_for_each(
    sampling_params: SamplingParams | Sequence[SamplingParams], num_prompts: int
) -> list[SamplingParams]:
    """Sampling parameters by prompt; InvalidRequest where they are none, or too few or too many."""
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * num_prompts
    if not isinstance(sampling_params, list | tuple):
        raise InvalidRequest(
            f"sampling_params is {sampling_params!r}; it takes SamplingParams, or a list with one for each prompt"
        )
    params = list(sampling_params)
    for index, entry in enumerate(params):
        if not isinstance(entry, SamplingParams):
            raise InvalidRequest(f"sampling_params[{index}] is {entry!r}; it takes SamplingParams")
    if len(params) != num_prompts:
        raise InvalidRequest(
            f"{len(params)} sampling_params for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return params


def priorities_for_each(priority: int | Sequence[int], num_prompts: int) -> list[int]:
    """Priorities by prompt; InvalidRequest where there are too few or too many."""
    if not isinstance(priority, list | tuple):
        return [priority] * num_prompts  # type: ignore[list-item] # add_request() says what it takes
    if len(priority) != num_prompts:
        raise InvalidRequest(
            f"{len(priority)} priorities for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return list(priority)
