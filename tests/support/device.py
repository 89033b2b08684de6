"""A worker without an engine: tests drive it step by step."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.cpu_attn import CPUAttentionBackend
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.config import Override, load_config
from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.scheduler_output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.engine.scheduling.kv_cache_config import common_layout, make_kv_cache_config

BACKEND_OF_CPU: type[AttentionBackend] = CPUAttentionBackend if _custom_ops.why_missing() is None else SDPABackend
"""What the in-tree platform chooses in float32: the compiled kernels, where this environment has them."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=None)


def make_dispatcher(model: Path, **settings: Any) -> Dispatcher:
    """A dispatcher on the in-tree cpu platform; ``settings`` are dotted keys with ``__`` for the dot."""
    values = {"platform.driver": "cpu", "engine.model": str(model)}
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    overrides = [Override(key, value, f"test:{key}") for key, value in values.items()]
    return bootstrap(load_config(overrides=overrides, environ={})).dispatcher()


class DrivenWorker:
    """The dispatcher's worker, started up, with a scheduler's bookkeeping done by the test.

    Cache blocks are handed out in random order. ``logits`` holds the rows of the last step. Without a reference to it
    the worker is shut down: threads of its process group would look for work for as long as the tests run.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        num_blocks: int = 64,
        rank: int = 0,
        init_method: str = "",
        dummy_weights: bool = False,
    ) -> None:
        self.dispatcher = dispatcher
        self.block_size = dispatcher.vllm_config.cache_config.block_size
        self.computed: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}
        self.logits: torch.Tensor | None = None
        self._new: list[NewRequestData] = []
        self._finished: set[str] = set()
        self._preempted: set[str] = set()
        self._resumed: dict[str, list[int]] = {}
        self._unused = random.Random(0).sample(range(num_blocks), num_blocks)
        self.worker = dispatcher.worker_factory(
            local_rank=rank, rank=rank, distributed_init_method=init_method, is_driver_worker=rank == 0
        )
        with shut_down_on_error(self.worker.shutdown), dispatcher.activate():
            self.worker.init_device()
            self.worker.load_model(load_dummy_weights=dummy_weights)
            spec = self.worker.get_kv_cache_spec()
            layout = common_layout([self.worker.get_supported_kv_cache_layouts()])
            groups = make_kv_cache_config(dispatcher.vllm_config, spec, layout, 1 << 30).kv_cache_groups
            self.num_groups = len(groups)
            self.worker.initialize_from_config(KVCacheConfig(num_blocks, groups, layout))
            self.worker.initialize_cache(num_blocks, 0)
            self.worker.compile_or_warm_up_model()
        model = self.worker.get_model()
        compute_logits, driver = model.compute_logits, weakref.proxy(self)
        model.compute_logits = lambda hidden_states: driver._keep(compute_logits(hidden_states))
        weakref.finalize(self, self.worker.shutdown).atexit = False

    def add(
        self, req_id: str, token_ids: list[int], params: SamplingParams = GREEDY, num_output_tokens: int = 0
    ) -> None:
        """A request that the next step may run."""
        self.computed[req_id] = 0
        self.blocks[req_id] = []
        self._new.append(NewRequestData(req_id, token_ids, params, ([],), 0, num_output_tokens))

    def finish(self, req_id: str) -> None:
        """The next step tells the worker to forget the request; its blocks are free at once."""
        self._finished.add(req_id)
        self._resumed.pop(req_id, None)
        self._unused.extend(self.blocks.pop(req_id))
        del self.computed[req_id]

    def preempt(self, req_id: str, all_token_ids: list[int]) -> None:
        """The next step tells the worker so; the request has ``all_token_ids`` when it is resumed."""
        self._preempted.add(req_id)
        self._unused.extend(self.blocks.pop(req_id))
        self.blocks[req_id], self.computed[req_id] = [], 0
        self._resumed[req_id] = all_token_ids

    def step(self, num_tokens: dict[str, int]) -> dict[str, list[int]]:
        """Compute so many tokens of each request; returns the new tokens of each."""
        new = {request.req_id: request for request in self._new if request.req_id in num_tokens}
        self._new = [request for request in self._new if request.req_id not in new]
        cached = CachedRequestData()
        for req_id, count in num_tokens.items():
            added = self._grow(req_id, count)
            if req_id in new:
                new[req_id].block_ids = (added,) * self.num_groups
            else:
                cached.req_ids.append(req_id)
                cached.new_block_ids.append((added,) * self.num_groups if added else None)
                cached.num_computed_tokens.append(self.computed[req_id])
                if req_id in self._resumed:
                    cached.resumed_req_ids.add(req_id)
                    cached.all_token_ids[req_id] = self._resumed.pop(req_id)
            self.computed[req_id] += count
        finished, self._finished = self._finished, set()
        preempted, self._preempted = self._preempted, set()
        output = self.execute(
            SchedulerOutput(list(new.values()), cached, num_tokens, sum(num_tokens.values()), finished, preempted)
        )
        return {req_id: output.sampled_token_ids[output.req_id_to_index[req_id]] for req_id in output.req_ids}

    def execute(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        with self.dispatcher.activate():
            output = self.worker.execute_model(scheduler_output)
            return self.worker.sample_tokens(None) if output is None else output

    def _grow(self, req_id: str, count: int) -> list[int]:
        blocks = self.blocks[req_id]
        needed = -(-(self.computed[req_id] + count) // self.block_size) - len(blocks)
        added = [self._unused.pop() for _ in range(needed)]
        blocks.extend(added)
        return added

    def _keep(self, logits: torch.Tensor) -> torch.Tensor:
        self.logits = logits
        return logits


@contextmanager
def driven_worker(
    model: Path, *, num_blocks: int = 64, dummy_weights: bool = False, **settings: Any
) -> Iterator[DrivenWorker]:
    """A :class:`DrivenWorker` on the checkpoint ``model``, shut down at the end."""
    driver = DrivenWorker(make_dispatcher(model, **settings), num_blocks=num_blocks, dummy_weights=dummy_weights)
    try:
        yield driver
    finally:
        driver.worker.shutdown()
