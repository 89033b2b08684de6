"""The IO processor of an engine: chosen, and only that one loaded."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from vllm_ext.config import Config
from vllm_ext.contracts.groups import IO_PROCESSOR
from vllm_ext.contracts.io_processor import IOProcessor
from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.errors import CheckpointError
from vllm_ext.managers import load_chosen
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import MODEL_KEY, BoundPlan, IOProcessorChoice, ModelsWish, choose_io_processor

logger = logging.getLogger(__name__)


class LoadedIOProcessor(NamedTuple):
    """The class of an engine's IO processor, or why there is none."""

    cls: type[IOProcessor[Any, Any]] | None
    source: str = ""
    """Whose it is: ``io processor plugin 'x' of acme 1.0``, for messages."""
    refusal: str = ""
    """What who asks for one is told; empty where there is one."""


def find_io_processor(bound_plan: BoundPlan, config: Config, hf_config: HFConfig) -> IOProcessorChoice:
    """The one that the settings name, else the one that the model names and the settings allow. Nothing is imported.

    Raises:
        CheckpointError: it is the model's turn, and its ``config.json`` holds no name under ``io_processor_plugin``.
    """
    is_users = bool(bound_plan.selected(IO_PROCESSOR.key))
    return choose_io_processor(bound_plan.plan, config, None if is_users else _models_wish(hf_config))


def load_io_processor(bound_plan: BoundPlan, config: Config, vllm_config: VllmConfig) -> LoadedIOProcessor:
    """Choose, import and check. What a model asks for in vain is a warning.

    Effects: ``vllm_config.additional_config`` gets the plugin's options.

    Raises:
        CheckpointError: as of :func:`find_io_processor`.
        PluginLoadError: the chosen one fails, declines, or is no ``IOProcessor``.
    """
    choice = find_io_processor(bound_plan, config, vllm_config.model_config.hf_config)
    if choice.warning:
        logger.warning("%s. Requests with data are refused", choice.warning)
    if choice.decision is None:
        return LoadedIOProcessor(None, refusal=choice.refusal)
    cls: type[IOProcessor[Any, Any]] = load_chosen(bound_plan.plan, choice.decision)
    if options := bound_plan.plan.options_of(choice.decision):
        vllm_config.additional_config.setdefault(choice.decision.name, options)
    return LoadedIOProcessor(cls, source_of(choice.decision))


def _models_wish(hf_config: HFConfig) -> ModelsWish | None:
    name, source = hf_config.get(MODEL_KEY), str(hf_config.source or "the model's configuration")
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{source}: {MODEL_KEY} is {name!r}; it takes the name of an IO processor plugin")
    return ModelsWish(name, source)
