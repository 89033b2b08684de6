"""Runs a model step by step: batch in, hidden states, logits, tokens out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vllm_ext.contracts.attention import AttentionBackend, AttentionCGSupport, AttentionMetadata
from vllm_ext.contracts.forward_context import additional_forward_context, set_forward_context
from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheSpec
from vllm_ext.contracts.outputs import EMPTY_MODEL_RUNNER_OUTPUT, LogprobsLists, ModelRunnerOutput
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.scheduler_output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_ext.contracts.static_graph import AbstractStaticGraphWrapper, BatchDescriptor
from vllm_ext.errors import ConfigError, EngineError
from vllm_ext.worker.input_batch import InputBatch, IntArray, StepInputs, resumed
from vllm_ext.worker.kv_cache import allocate_kv_cache, bind_kv_cache
from vllm_ext.worker.memory import LargestStep
from vllm_ext.worker.model_calls import check_hidden_states, compute_logits, selects_rows
from vllm_ext.worker.pooling_runner import PoolingRunner
from vllm_ext.worker.sampling.logprobs import PromptLogprobs
from vllm_ext.worker.sampling.metadata import Choice, SamplingMetadata
from vllm_ext.worker.sampling.plugin_logits_processors import LogitsProcessors, build_logits_processors
from vllm_ext.worker.sampling.sampler import Sampler, SamplerOutput
from vllm_ext.worker.step_buffers import StepBuffers
from vllm_ext.worker.step_metadata import StepMetadata
from vllm_ext.worker.unused_parts import warn_of_unread_shapes, warn_of_unused_wrapper

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform
    from vllm_ext.contracts.vllm_config import VllmConfig
    from vllm_ext.dispatch.logits_processors import NamedLogitsProcessor

_WARM_UP_TOKENS = 16
_FULL_DECODE_MODES = ("FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
"""Graph modes in which a decode step is one graph."""


class ModelRunner:
    """A loaded model, its KV cache, and the state of the requests in flight.

    Args:
        model: keeps the model contract; its weights are loaded.
        device: where the model lives.
        logits_processors: those besides the worker's own.

    Raises:
        EngineError: a logits processor cannot be built.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        platform: Platform,
        model: nn.Module,
        device: torch.device,
        logits_processors: Sequence[NamedLogitsProcessor] = (),
    ) -> None:
        self.vllm_config = vllm_config
        self.platform = platform
        self.device = device
        self.layers = vllm_config.compilation_config.static_forward_context
        self.sampler = Sampler(vllm_config.model_config.seed)
        is_pooling = vllm_config.model_config.runner_type == "pooling"
        self.pooling = PoolingRunner(device) if is_pooling else None
        self._bind_model(model)
        self._processors = build_logits_processors(
            vllm_config, device, platform.is_pin_memory_available(), logits_processors
        )
        # A model that pools has none, and its requests ask for none.
        self._prompt_logprobs = PromptLogprobs()
        self._pending: tuple[StepInputs, torch.Tensor | None, dict[str, LogprobsLists]] | None = None
        self._runnable: Callable[..., torch.Tensor]
        # From initialize_kv_cache() on:
        self.batch: InputBatch
        self._kv_cache_config: KVCacheConfig
        self._block_sizes: list[int]
        self._buffers: StepBuffers
        self._metadata: StepMetadata
        self._num_blocks: int

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """What each layer of the model stores, by layer name."""
        specs = {name: layer.get_kv_cache_spec(self.vllm_config) for name, layer in self.layers.items()}
        return {name: spec for name, spec in specs.items() if spec is not None}

    def initialize_kv_cache(self, config: KVCacheConfig) -> None:
        """Allocate the cache, bind it, and set up what steps need: called once, before the first one.

        Raises:
            ConfigError: there is no memory for the tokens of as many requests as there may be.
        """
        self._block_sizes = [group.kv_cache_spec.block_size for group in config.kv_cache_groups]
        self._make_room_for_requests()
        if config.kv_cache_groups:
            warn_of_unread_shapes(self._attention_backends(), config.kv_cache_layout)
        self._kv_cache_config = config
        self.allocate_kv_cache()
        self._num_blocks = config.num_blocks
        self._metadata = StepMetadata(config, self.layers, self.vllm_config, self.device)
        self._runnable = self._wrap_model()

    def allocate_kv_cache(self) -> None:
        """Take the memory of the cache, zeroed; EngineError where the model is not there (see :meth:`free_model`)."""
        if self.model is None:
            raise EngineError("the weights sleep; they are woken up before the KV cache, or together with it")
        bind_kv_cache(allocate_kv_cache(self._kv_cache_config, self.device), self.layers)

    def free_kv_cache(self) -> None:
        """Give the memory of the cache back, until :meth:`allocate_kv_cache`."""
        names = [name for group in self._kv_cache_config.kv_cache_groups for name in group.layer_names]
        bind_kv_cache(dict.fromkeys(names, torch.empty(0, device=self.device)), self.layers)
        self.clear_graphs()

    def free_model(self) -> None:
        """Drop the model and its weights, until :meth:`use_model`; what is known of requests stays."""
        self.layers.clear()
        self._bind_model(None)
        del self._metadata

    def use_model(self, model: nn.Module) -> None:
        """Go on with a model like the first one, whose layers are registered."""
        self._bind_model(model)
        self._metadata = StepMetadata(self._kv_cache_config, self.layers, self.vllm_config, self.device)
        self._runnable = self._wrap_model()

    def _bind_model(self, model: Any) -> None:
        self.model: Any = model
        vocab_size = self.vllm_config.model_config.hf_config.get("vocab_size")
        self._compute_logits = partial(compute_logits, model, vocab_size)
        self._selects_rows = selects_rows(model)
        self._runnable = model
        if self.pooling is not None:
            self.pooling.pooler = getattr(model, "pooler", None)

    def clear_graphs(self) -> None:
        """Record decode steps anew: they hold the addresses of weights, which may be others now."""
        if isinstance(self._runnable, AbstractStaticGraphWrapper):
            self._runnable.clear_graphs()

    def _attention_backends(self) -> list[type[AttentionBackend]]:
        return [layer.attn_backend for layer in self.layers.values() if hasattr(layer, "attn_backend")]

    def _wrap_model(self) -> Callable[..., torch.Tensor]:
        """The model, behind the platform's static graphs where decode steps may be replayed."""
        mode = self.vllm_config.compilation_config.cudagraph_mode
        qualname = self.platform.get_static_graph_wrapper_cls() if mode in _FULL_DECODE_MODES else None
        if qualname is None or self.pooling is not None:
            return self.model
        if self._metadata.graph_support() is AttentionCGSupport.NEVER:
            warn_of_unused_wrapper(self.platform, qualname, self._attention_backends())
            return self.model
        wrapper_cls = resolve_class(
            qualname,
            AbstractStaticGraphWrapper,  # type: ignore[type-abstract]
            slot="static graph wrapper",
            source=f"{type(self.platform).__qualname__}.get_static_graph_wrapper_cls()",
        )
        return wrapper_cls(self.model, self.vllm_config, "FULL")

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """First phase of a step: up to the logits, which :meth:`sample_tokens` then waits for; of a pooling model, the
        whole step.
        """
        self.batch.update(scheduler_output)
        self._update_prompt_logprobs(scheduler_output)
        if self.pooling is not None:
            self.pooling.update(scheduler_output)
        if not scheduler_output.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        step = self.batch.make_step(scheduler_output.num_scheduled_tokens)
        with self.platform.inference_mode():
            indices = self._logits_indices(step)
            inputs = self._model_inputs(step, indices)
            hidden_states = self._forward(
                self._buffers.put("input_ids", step.input_ids),
                self._buffers.put("positions", step.positions),
                *self._metadata.build(step, self.batch, self._buffers, self._block_sizes),
                inputs,
                BatchDescriptor(len(step.req_ids)) if step.is_decode else None,
            )
            if self.pooling is not None:
                return self.pooling.pool(step, hidden_states)
            prompt_logprobs = self._prompt_logprobs.collect(
                step.req_ids, step.query_start_loc, hidden_states, self._compute_logits
            )
            if indices is not None and "logits_indices" not in inputs:
                hidden_states = hidden_states.index_select(0, indices)
            logits = self._compute_logits(hidden_states) if len(step.sampling_reqs) else None
            self._pending = step, logits, prompt_logprobs
        return None

    def sample_tokens(self) -> ModelRunnerOutput:
        """Second phase: a new token for each request whose known tokens are all computed.

        Raises:
            EngineError: there was no first phase.
        """
        if self._pending is None:
            raise EngineError("sample_tokens() was called without an execute_model() that returned None before it")
        (step, logits, prompt_logprobs), self._pending = self._pending, None
        sampled: list[list[int]] = [[] for _ in step.req_ids]
        logprobs: dict[str, LogprobsLists] = {}
        if logits is not None:
            slots, reqs = step.slots[step.sampling_reqs], step.sampling_reqs.tolist()
            output = self._sample(slots, logits)
            token_ids = output.token_ids.cpu().numpy()
            self.batch.append_tokens(slots, token_ids)
            for req, token_id in zip(reqs, token_ids.tolist(), strict=True):
                sampled[req] = [token_id]
            logprobs = {step.req_ids[reqs[row]]: lists for row, lists in output.logprobs.items()}
        return ModelRunnerOutput(
            req_ids=step.req_ids,
            req_id_to_index=dict(zip(step.req_ids, itertools.count())),
            sampled_token_ids=sampled,
            logprobs=logprobs,
            prompt_logprobs_dict=prompt_logprobs,
        )

    def largest_step(self) -> LargestStep:
        """From embedding to drawn tokens, but for attention, which needs a KV cache: for measuring its memory."""
        scheduler, max_model_len = self.vllm_config.scheduler_config, self.vllm_config.model_config.max_model_len
        num_tokens = min(scheduler.max_num_batched_tokens, scheduler.max_num_seqs * max_model_len)
        num_rows = 0 if self.pooling is not None else min(scheduler.max_num_seqs, num_tokens)
        return LargestStep(num_tokens, num_rows, self._profile_forward, self._profile_sampling)

    def _profile_forward(self, num_tokens: int) -> torch.Tensor:
        positions = torch.arange(num_tokens, device=self.device) % self.vllm_config.model_config.max_model_len
        with self.platform.inference_mode():
            return self._forward(torch.zeros_like(positions), positions, None)

    def _profile_sampling(self, hidden_states: torch.Tensor) -> None:
        with self.platform.inference_mode():
            self.sampler(self._compute_logits(hidden_states), _drawing_metadata(len(hidden_states)))

    def warm_up(self) -> None:
        """Serve a short prompt and one token after it, in a batch of its own that plugins do not hear of: no state is
        left but the contents of cache blocks that nobody has yet.
        """
        num_tokens = min(_WARM_UP_TOKENS, self.vllm_config.model_config.max_model_len - 1)
        block_ids = tuple(list(range(-(-(num_tokens + 1) // size))) for size in self._block_sizes)
        if num_tokens < 1 or any(len(ids) > self._num_blocks for ids in block_ids):
            return
        if self.pooling is not None:
            self._warm_up_pooling(num_tokens, block_ids)
            return
        request = NewRequestData("warm-up", [0] * num_tokens, SamplingParams(temperature=0), block_ids, 0)
        decode = CachedRequestData(["warm-up"], [None], [num_tokens])
        batch, self.batch = self.batch, self._make_batch(LogitsProcessors(self._processors.own))
        for output in (
            SchedulerOutput([request], CachedRequestData(), {"warm-up": num_tokens}, num_tokens),
            SchedulerOutput([], decode, {"warm-up": 1}, 1),
        ):
            self.execute_model(output)
            self.sample_tokens()
        self.batch = batch

    def _warm_up_pooling(self, num_tokens: int, block_ids: tuple[list[int], ...]) -> None:
        task = min(self.model.pooler.get_supported_tasks())
        request = NewRequestData("warm-up", [0] * num_tokens, None, block_ids, 0, 0, PoolingParams(task=task))
        self.execute_model(SchedulerOutput([request], CachedRequestData(), {"warm-up": num_tokens}, num_tokens))
        self.execute_model(SchedulerOutput([], CachedRequestData(), {}, 0, {"warm-up"}))

    def _make_room_for_requests(self) -> None:
        try:
            self._buffers = self._make_buffers()
            self.batch = self._make_batch(self._processors)
        except MemoryError as error:
            max_num_seqs = self.vllm_config.scheduler_config.max_num_seqs
            raise ConfigError(
                f"engine.max_num_seqs is {max_num_seqs}, and there is no memory for the tokens of so many requests: "
                f"{error}. Set it, or engine.max_model_len, lower"
            ) from error

    def _make_buffers(self) -> StepBuffers:
        buffers = StepBuffers(self.vllm_config.scheduler_config.max_num_seqs + 1, self.device)
        for name in ("input_ids", "positions"):
            buffers.add(name, np.int64)
        for name in ("query_start_loc", "seq_lens"):
            buffers.add(name, np.int32)
        for group, width in enumerate(self._table_widths()):
            buffers.add(f"block_table {group}", np.int32, width)
            buffers.add(f"slot_mapping {group}", np.int64)
        return buffers

    def _table_widths(self) -> list[int]:
        """Blocks that a request may have, by KV cache group."""
        max_model_len = self.vllm_config.model_config.max_model_len
        return [-(-max_model_len // block_size) for block_size in self._block_sizes]

    def _make_batch(self, processors: LogitsProcessors) -> InputBatch:
        return InputBatch(
            self.vllm_config.scheduler_config.max_num_seqs,
            self.vllm_config.model_config.max_model_len,
            self._table_widths(),
            processors,
            self.device,
        )

    def _forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: dict[str, AttentionMetadata] | None,
        slot_mapping: dict[str, torch.Tensor] | None = None,
        inputs: Mapping[str, torch.Tensor] = MappingProxyType({}),
        descriptor: BatchDescriptor | None = None,
    ) -> torch.Tensor:
        num_tokens = input_ids.shape[0]
        if self._runnable is self.model:
            descriptor = None
        additional = additional_forward_context(self.platform, metadata, self.vllm_config, num_tokens, descriptor)
        with set_forward_context(metadata, num_tokens, additional, slot_mapping, descriptor):
            hidden_states = self._runnable(input_ids, positions, **inputs)
        return check_hidden_states(self.model, hidden_states, len(inputs.get("logits_indices", input_ids)))

    def _logits_indices(self, step: StepInputs) -> torch.Tensor | None:
        """int64 ``[rows]``: the last token of each request that gets a new one; ``None`` where these are all tokens.

        Where no request gets one it is some token: empty batches are not for every op and collective.
        """
        if len(step.sampling_reqs) == len(step.input_ids):
            return None
        reqs = step.sampling_reqs if len(step.sampling_reqs) else [0]
        return self._to_device(step.query_start_loc[1:][reqs] - 1)

    def _model_inputs(self, step: StepInputs, indices: torch.Tensor | None) -> Mapping[str, torch.Tensor]:
        """What the model is given besides tokens and positions."""
        if self.pooling is not None:
            return self.pooling.model_inputs(step)
        # A decode step may be a static graph, whose inputs are always the same.
        if indices is None or step.is_decode or not self._selects_rows or self._prompt_logprobs.is_waiting:
            return {}
        return {"logits_indices": indices}

    def _sample(self, slots: IntArray, logits: torch.Tensor) -> SamplerOutput:
        metadata = self.batch.sampling.metadata(slots)
        if metadata is None:
            # Nothing is changed in place, so that the cost of entering the mode is saved.
            return self.sampler(logits)
        with self.platform.inference_mode():
            return self.sampler(logits, metadata)

    def _update_prompt_logprobs(self, scheduler_output: SchedulerOutput) -> None:
        for req_id in scheduler_output.finished_req_ids:
            self._prompt_logprobs.remove(req_id)
        for new in scheduler_output.scheduled_new_reqs:
            # Who has output got them before.
            params = new.sampling_params
            if params is not None and params.prompt_logprobs is not None and not new.num_output_tokens:
                self._prompt_logprobs.add(new, params.prompt_logprobs)
        for req_id, num_computed in resumed(scheduler_output):
            self._prompt_logprobs.restart(req_id, num_computed)

    def _to_device(self, array: IntArray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64, copy=False)).to(self.device)


def _drawing_metadata(num_rows: int) -> SamplingMetadata:
    """Rows that draw among the likeliest tokens, which takes more memory than any other way. They are seeded, so that
    the random numbers of requests are not those after these.
    """
    ones, zeros = np.ones(num_rows), np.zeros(num_rows)
    choice = Choice(
        rows=np.arange(num_rows),
        temperature=ones.astype(np.float32),
        top_k=np.full(num_rows, 2),
        top_p=np.full(num_rows, 0.5, dtype=np.float32),
        seeds=zeros.astype(np.uint64),
        is_seeded=ones.astype(np.bool_),
        num_output_tokens=zeros.astype(np.int64),
    )
    return SamplingMetadata(num_rows, (), (), None, choice, {})
