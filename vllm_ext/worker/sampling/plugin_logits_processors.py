"""Logits processors that are not the worker's own: what goes wrong in one is an error that names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from vllm_ext.contracts.logits_processor import BatchUpdate, LogitsProcessor
from vllm_ext.dispatch.naming_code import NamingCode
from vllm_ext.worker.sampling.logits_processors import IN_TREE

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import VllmConfig
    from vllm_ext.dispatch.logits_processors import NamedLogitsProcessor


class LogitsProcessors(NamedTuple):
    """All of a worker, in the order in which they are applied."""

    own: Sequence[LogitsProcessor]
    """Each looks at requests that use its parameter, and at no other."""
    plugins: Sequence[LogitsProcessor] = ()
    """Any request may concern them."""


def build_logits_processors(
    vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool, plugins: Sequence[NamedLogitsProcessor]
) -> LogitsProcessors:
    """The worker's own, and one of each of ``plugins``; EngineError where a plugin's cannot be built."""
    return LogitsProcessors(
        [processor_cls(vllm_config, device, is_pin_memory) for processor_cls in IN_TREE],
        [PluginLogitsProcessor(vllm_config, device, is_pin_memory, plugin) for plugin in plugins],
    )


class PluginLogitsProcessor(LogitsProcessor):
    """Stands for the processor of a plugin: whatever that raises becomes an EngineError with the plugin's name."""

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool, plugin: NamedLogitsProcessor
    ) -> None:
        self._source = plugin.source
        with self._code("__init__"):
            self._processor = plugin.cls(vllm_config, device, is_pin_memory)
        with self._code("is_argmax_invariant"):
            self._is_argmax_invariant = bool(self._processor.is_argmax_invariant())

    def is_argmax_invariant(self) -> bool:
        return self._is_argmax_invariant

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        with self._code("update_state"):
            self._processor.update_state(batch_update)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        shape, dtype = logits.shape, logits.dtype
        with self._code("apply"):
            logits = self._processor.apply(logits)
            if not isinstance(logits, torch.Tensor) or logits.shape != shape or not logits.is_floating_point():
                given = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, torch.Tensor) else repr(logits)
                raise TypeError(f"it has to return the logits, {dtype} {list(shape)}, and returned {given}")
        return logits.to(dtype)

    def _code(self, method: str) -> NamingCode:
        return NamingCode(f"{self._source} failed in {method}()")
