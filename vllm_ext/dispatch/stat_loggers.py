"""The stat loggers of an engine: those of plugins, then those that a program hands over."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm_ext.contracts.call_check import check_method
from vllm_ext.contracts.groups import STAT_LOGGER
from vllm_ext.contracts.stat_logger import (
    RECORD_KEYWORDS,
    AggregateStatLoggerBase,
    StatLoggerBase,
    StatLoggerFactory,
)
from vllm_ext.errors import ContractError, PluginError, Unavailable, VllmExtError, innermost_cause
from vllm_ext.managers import LoadedPlugin, build_extension, load_extensions
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import BoundPlan

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig

ARGUMENT = "stat_loggers"
ENGINE_INDEX = 0
"""A front end has one engine."""


class NamedStatLogger(NamedTuple):
    """A logger that is built, and whose it is: ``stat logger plugin 'x' of acme 1.0``, for messages."""

    source: str
    logger: StatLoggerBase


class StatLoggers:
    """What an engine's stat loggers are made of; checked here, built when the engine is ready.

    Args:
        bound_plan: its stat logger plugins are imported.
        factories: what a program hands over. A class that is a plugin as well is built once.

    Raises:
        PluginLoadError: a plugin that the user named failed, or is no stat logger.
        ContractError: something in ``factories`` cannot be called.
    """

    def __init__(self, bound_plan: BoundPlan, factories: Sequence[StatLoggerFactory] = ()) -> None:
        self._bound_plan = bound_plan
        for factory in factories:
            if not callable(factory):
                raise ContractError(
                    f"{ARGUMENT} holds {factory!r}; it takes classes of stat loggers, or functions that make one when "
                    "they are called with (vllm_config, engine_index)"
                )
        self._plugins: list[LoadedPlugin] = load_extensions(bound_plan, STAT_LOGGER)
        classes = [plugin.value for plugin in self._plugins]
        self._factories = [factory for factory in factories if factory not in classes]

    def build(self, vllm_config: VllmConfig) -> Iterator[NamedStatLogger]:
        """Each logger. A plugin that was merely found and fails is reported once, and left out.

        Raises:
            PluginLoadError, PluginError, ContractError: one that the user named, or handed over, fails.
        """
        for plugin in self._plugins:
            build = functools.partial(_make, plugin.value, vllm_config)
            logger = build_extension(self._bound_plan, plugin.decision, build)
            if logger is not None:
                yield NamedStatLogger(source_of(plugin.decision), logger)
        for factory in self._factories:
            yield _made_by(factory, vllm_config)


def _make(factory: StatLoggerFactory, vllm_config: VllmConfig) -> StatLoggerBase:
    is_aggregate = isinstance(factory, type) and issubclass(factory, AggregateStatLoggerBase)
    # By position, as vLLM does it.
    return factory(vllm_config, [ENGINE_INDEX] if is_aggregate else ENGINE_INDEX)


def _made_by(factory: StatLoggerFactory, vllm_config: VllmConfig) -> NamedStatLogger:
    name = getattr(factory, "__qualname__", repr(factory))
    source = f"stat logger {name!r} of the argument {ARGUMENT}"
    try:
        logger = _make(factory, vllm_config)
    except Unavailable as error:
        raise PluginError(f"{source} declined: {error}", plugin=name) from error
    except (VllmExtError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"{source} failed when it was built: {innermost_cause(error)}", plugin=name) from error
    if not isinstance(logger, StatLoggerBase):
        raise ContractError(f"{source} made {logger!r}, which is no vllm_ext.StatLoggerBase", plugin=name)
    check_method(type(logger), "record", (), RECORD_KEYWORDS, slot="stat logger", source=source)
    return NamedStatLogger(source, logger)
