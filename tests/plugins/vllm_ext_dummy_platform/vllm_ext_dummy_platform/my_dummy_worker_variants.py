"""Variants of the worker: one in two phases, and methods to add to any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext_dummy_platform.my_dummy_worker import MyDummyWorker

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import CacheConfig


class MyDummyTwoPhaseWorker(MyDummyWorker):
    """Announces by ``None`` that the tokens come with :meth:`sample_tokens`. Named by ``worker.cls``."""

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        self.output = super().execute_model(scheduler_output)
        # A step without tokens has no second phase.
        return None if scheduler_output.total_num_scheduled_tokens else self.output

    def sample_tokens(self, grammar_output: Any | None) -> ModelRunnerOutput:
        return self.output


class MyDummyWorkerExtension:
    """For ``collective_rpc`` by name. Named by ``worker.extension_cls``; the worker's attributes are its own."""

    cache_config: CacheConfig

    def count_dummy_slots(self) -> int:
        """Tokens that the KV cache has room for."""
        return self.cache_config.num_gpu_blocks * self.cache_config.block_size
