"""The worker: it loads the model, keeps the requests and the KV cache, and makes the steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm_ext import SamplingParams, WorkerBase
from vllm_ext.contracts.attention import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm_ext.contracts.forward_context import additional_forward_context, set_forward_context
from vllm_ext.contracts.kv_cache import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheLayout,
    KVCacheSpec,
)
from vllm_ext.contracts.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_ext.contracts.worker import CompilationTimes
from vllm_ext.dispatch.dispatcher import get_current_dispatcher
from vllm_ext.distributed.parallel_state import GroupCoordinator, init_distributed_environment, use_tp_group
from vllm_ext.worker.loading.loader import load_model
from vllm_ext.worker.sampling.sampler import Sampler
from vllm_ext_dummy_platform import calls

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RequestState:
    """What the worker knows of a request."""

    token_ids: list[int]
    """The prompt, and every token sampled so far."""
    num_output_tokens: int
    """How many of them were sampled."""
    sampling_params: SamplingParams | None
    """``None`` for a model that pools."""
    block_ids: list[int]
    num_computed_tokens: int


@dataclass(slots=True)
class Span:
    """The part of a request that one step computes: tokens ``[first, last)`` of it."""

    req_id: str
    request: RequestState
    first: int
    last: int

    @property
    def is_complete(self) -> bool:
        """Whether the step reaches the last known token, so that a new one is due."""
        return self.last == len(self.request.token_ids)


@dataclass(slots=True)
class KVCacheGroup:
    """The layers that share a block table, and what makes their attention metadata."""

    layer_names: list[str]
    builder: AttentionMetadataBuilder[Any]


class MyDummyWorker(WorkerBase):
    """A worker in one phase: :meth:`execute_model` returns the sampled tokens, so ``sample_tokens`` is never called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests: dict[str, RequestState] = {}
        self.block_size = 0
        self.pin_memory = False
        self.profiler: torch.profiler.profile | None = None
        self.trace = ""
        self.tp_group: GroupCoordinator | None = None
        self.model: nn.Module | None = None
        self.groups: list[KVCacheGroup] = []

    # Start-up, in the order of the calls -----------------------------------------------------------------------------

    def init_device(self) -> None:
        platform = self.current_platform
        self.device = torch.device(platform.device_type)
        platform.set_device(self.device)
        platform.check_if_supports_dtype(self.model_config.dtype)
        self.pin_memory = platform.is_pin_memory_available() and torch.accelerator.is_available()
        self._log_device()
        platform.seed_everything(self.model_config.seed)
        world_size = self.parallel_config.world_size
        backend = platform.dist_backend
        ranks = init_distributed_environment(world_size, self.rank, self.distributed_init_method, backend)
        self.tp_group = GroupCoordinator("tp:0", ranks, self.device, get_current_dispatcher())

    def _log_device(self) -> None:
        platform = self.current_platform
        number = platform.device_id_to_physical_device_id(self.local_rank)
        name, capability = platform.get_device_name(number), platform.get_device_capability(number)
        logger.info("worker %d uses device %d: %s, capability %s", self.rank, number, name, capability)

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        with use_tp_group(self.tp_group):
            self.model = load_model(self.vllm_config, self.device, dummy_weights=load_dummy_weights)
            self.sampler = Sampler(self.model_config.seed)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return {name: layer.get_kv_cache_spec(self.vllm_config) for name, layer in self._attention_layers().items()}

    def get_supported_kv_cache_layouts(self) -> list[KVCacheLayout] | None:
        """The layouts of the first layer's backend: all layers of this platform have the same."""
        for layer in self._attention_layers().values():
            layouts = layer.attn_backend.supported_kv_cache_layouts()
            return None if layouts is None else list(layouts)
        return None

    def set_kv_cache_layout(self, layout: KVCacheLayout) -> None:
        self.layout = layout
        super().set_kv_cache_layout(layout)

    def update_max_model_len(self, max_model_len: int) -> None:
        logger.info("requests may have %d tokens", max_model_len)
        super().update_max_model_len(max_model_len)

    def determine_available_memory(self) -> int:
        """Half of what is left once the largest step has taken its share."""
        self._profile(self.scheduler_config.max_num_batched_tokens)
        platform = self.current_platform
        return int(platform.get_device_total_memory() - platform.get_current_memory_usage()) // 2

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        self.kv_cache_config = kv_cache_config
        # The platform may have changed it when the model was loaded.
        self.block_size = self.cache_config.block_size
        # More than one where layers differ, for example in their sliding window.
        self.groups = [self._initialize_group(kv_cache_config, group) for group in kv_cache_config.kv_cache_groups]

    def _initialize_group(self, kv_cache_config: KVCacheConfig, group: KVCacheGroupSpec) -> KVCacheGroup:
        spec = group.kv_cache_spec
        if not isinstance(spec, FullAttentionSpec):
            raise ValueError(f"MyDummyWorker cannot store what {type(spec).__name__} describes")
        layers = self._attention_layers()
        layout = kv_cache_config.kv_cache_layout
        shape = layout.shape(
            layers=len(group.layer_names),
            blocks=kv_cache_config.num_blocks,
            heads=spec.num_kv_heads,
            block_size=spec.block_size,
            content=2 * spec.head_size,
        )
        kv_cache = torch.zeros(shape, dtype=spec.dtype, device=self.device)
        for number, name in enumerate(group.layer_names):
            layers[name].bind_kv_cache(kv_cache.select(layout.layer_dim, number))
        names = list(group.layer_names)
        builder_cls = layers[names[0]].attn_backend.get_builder_cls()
        return KVCacheGroup(names, builder_cls(spec, names, self.vllm_config, self.device))

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None:
        logger.info("the KV cache has %d blocks", num_gpu_blocks)
        super().initialize_cache(num_gpu_blocks, num_cpu_blocks)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        started = time.perf_counter()
        self._profile(1)
        return CompilationTimes(language_model=time.perf_counter() - started)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def get_supported_sampling_params(self) -> frozenset[str]:
        return frozenset({"temperature", "seed"})

    # Steps -----------------------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        self._update_requests(scheduler_output)
        if not scheduler_output.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        calls["worker_steps"] += 1
        spans = self._spans(scheduler_output.num_scheduled_tokens)
        with self.current_platform.inference_mode():
            output = ModelRunnerOutput(
                req_ids=[span.req_id for span in spans],
                req_id_to_index={span.req_id: index for index, span in enumerate(spans)},
                sampled_token_ids=[[] for _ in spans],
            )
            self._finish(output, spans, self._forward(spans))
        return output

    def _finish(self, output: ModelRunnerOutput, spans: list[Span], hidden_states: torch.Tensor) -> None:
        """Enter into ``output`` what the states of the step's tokens come to."""
        output.sampled_token_ids = self._sample(spans, hidden_states)

    # Between steps ---------------------------------------------------------------------------------------------------

    def sleep(self, level: int = 1) -> None:
        self.groups = []
        for layer in self._attention_layers().values():
            layer.bind_kv_cache(torch.empty(0, device=self.device))
        if level == 2:
            self.model = None
            self.compilation_config.static_forward_context.clear()

    def wake_up(self, tags: list[str] | None = None) -> None:
        if self.model is None and (tags is None or "weights" in tags):
            self.load_model()
        if tags is None or "kv_cache" in tags:
            self.initialize_from_config(self.kv_cache_config)

    def get_model(self) -> nn.Module:
        if self.model is None:
            raise RuntimeError("the model is not loaded yet")
        return self.model

    def apply_model(self, fn: Callable[[nn.Module], Any]) -> Any:
        with self.current_platform.inference_mode():
            return fn(self.get_model())

    def clear_graphs(self) -> None:
        logger.info("no step is kept to be replayed")

    def get_model_inspection(self) -> str:
        return f"on the dummy device: {self.get_model()}"

    def reset_prefix_cache(self) -> None:
        logger.info("prompts are computed anew")

    def check_health(self) -> None:
        self.get_model()

    def synchronize_device(self) -> None:
        """Nothing runs beside this thread."""

    def profile(self, is_start: bool = True, profile_prefix: str | None = None) -> None:
        directory = self.vllm_config.profiler_config.torch_profiler_dir
        if directory is None:
            raise RuntimeError("profiler.torch_profiler_dir is not set")
        if is_start:
            self.trace = f"{directory}/{profile_prefix or 'dummy'}.json"
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        elif self.profiler is not None:
            self.profiler.stop()
            self.profiler.export_chrome_trace(self.trace)
            self.profiler = None

    def shutdown(self) -> None:
        self.requests.clear()
        self.groups.clear()
        self.model = None
        # The layers hold the KV cache.
        self.compilation_config.static_forward_context.clear()
        if self.tp_group is not None:
            self.tp_group.destroy()
            self.tp_group = None

    # Requests --------------------------------------------------------------------------------------------------------

    def _update_requests(self, scheduler_output: SchedulerOutput) -> None:
        # First those that ended: a new one may have the id of one of them.
        for req_id in scheduler_output.finished_req_ids:
            self.requests.pop(req_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._add_request(new)
        self._continue_requests(scheduler_output.scheduled_cached_reqs)

    def _add_request(self, new: NewRequestData) -> None:
        # One list for each group of layers; the engine gives all groups the same blocks.
        block_ids = new.block_ids[0]
        self.requests[new.req_id] = RequestState(
            token_ids=list(new.prompt_token_ids),
            num_output_tokens=new.num_output_tokens,
            sampling_params=new.sampling_params,
            block_ids=list(block_ids),
            num_computed_tokens=new.num_computed_tokens,
        )

    def _continue_requests(self, cached: CachedRequestData) -> None:
        columns = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
        for req_id, new_block_ids, num_computed_tokens in columns:
            request = self.requests[req_id]
            request.num_computed_tokens = num_computed_tokens
            if req_id in cached.resumed_req_ids:
                self._forget_computed(req_id, request)
            if new_block_ids is not None:
                request.block_ids += new_block_ids[0]

    def _forget_computed(self, req_id: str, request: RequestState) -> None:
        """It was preempted: its blocks are those of others now."""
        request.block_ids = []

    def _spans(self, num_scheduled_tokens: dict[str, int]) -> list[Span]:
        spans = []
        for req_id, num_tokens in num_scheduled_tokens.items():
            request = self.requests[req_id]
            first = request.num_computed_tokens
            spans.append(Span(req_id, request, first, first + num_tokens))
        return spans

    # Computation -----------------------------------------------------------------------------------------------------

    def _forward(self, spans: list[Span]) -> torch.Tensor:
        """Hidden states of all tokens of the step, request after request."""
        input_ids = [token for span in spans for token in span.request.token_ids[span.first : span.last]]
        positions = [position for span in spans for position in range(span.first, span.last)]
        common = self._common_metadata(spans)
        by_layer: dict[str, AttentionMetadata] = {}
        for group in self.groups:
            by_layer |= dict.fromkeys(group.layer_names, group.builder.build(0, common))
        additional = additional_forward_context(self.current_platform, by_layer, self.vllm_config, len(input_ids))
        # The attention layer hands it to backends that store keys and values before they attend.
        slot_mapping = dict.fromkeys(by_layer, common.slot_mapping)
        with set_forward_context(by_layer, len(input_ids), additional, slot_mapping):
            return self.get_model()(self._long(input_ids), self._long(positions), **self._model_inputs(spans))

    def _model_inputs(self, spans: list[Span]) -> dict[str, torch.Tensor]:
        """What the model gets besides."""
        return {}

    def _common_metadata(self, spans: list[Span]) -> CommonAttentionMetadata:
        """The step in the form that every attention backend's builder understands."""
        query_lens = [span.last - span.first for span in spans]
        query_start_loc = torch.tensor([0, *query_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        seq_lens = torch.tensor([span.last for span in spans], dtype=torch.int32)
        widest = max(len(span.request.block_ids) for span in spans)
        block_table = [span.request.block_ids + [0] * (widest - len(span.request.block_ids)) for span in spans]
        slots = [
            span.request.block_ids[position // self.block_size] * self.block_size + position % self.block_size
            for span in spans
            for position in range(span.first, span.last)
        ]
        return CommonAttentionMetadata(
            query_start_loc=query_start_loc.to(self.device),
            query_start_loc_cpu=query_start_loc,
            seq_lens=seq_lens.to(self.device),
            seq_lens_cpu=seq_lens,
            num_reqs=len(spans),
            num_actual_tokens=len(slots),
            max_query_len=max(query_lens),
            max_seq_len=max(span.last for span in spans),
            block_table_tensor=torch.tensor(block_table, dtype=torch.int32, device=self.device),
            slot_mapping=self._long(slots),
        )

    def _sample(self, spans: list[Span], hidden_states: torch.Tensor) -> list[list[int]]:
        """One new token for each request whose tokens are all computed now; none for the others."""
        last_rows, row = [], 0
        for span in spans:
            row += span.last - span.first
            last_rows.append(row - 1)
        logits = self.get_model().compute_logits(hidden_states[self._long(last_rows)])
        sampled: list[list[int]] = []
        for span, request_logits in zip(spans, logits, strict=True):
            sampled.append([self._sample_one(span.request, request_logits)] if span.is_complete else [])
        return sampled

    def _sample_one(self, request: RequestState, logits: torch.Tensor) -> int:
        params = request.sampling_params
        if params is None or params.is_greedy:
            token = int(self.sampler(logits[None]).token_ids)
        else:
            probabilities = (logits.float() / params.temperature).softmax(dim=-1)
            generator = self._generator(request)
            token = int(probabilities.multinomial(1, generator=generator))
        request.token_ids.append(token)
        request.num_output_tokens += 1
        return token

    def _generator(self, request: RequestState) -> torch.Generator | None:
        """Random numbers of a seeded request's next token, the same whether or not it was preempted before."""
        if request.sampling_params is None or (seed := request.sampling_params.seed) is None:
            return None
        mixed = (seed * 6364136223846793005 + request.num_output_tokens) % 2**63
        return torch.Generator(self.device).manual_seed(mixed)

    def _profile(self, num_tokens: int) -> None:
        """Run the model on ``num_tokens`` tokens without attention."""
        tokens = torch.zeros(num_tokens, dtype=torch.int64, device=self.device)
        num_rows = min(num_tokens, self.scheduler_config.max_num_seqs)
        with self.current_platform.inference_mode(), set_forward_context(None, num_tokens):
            hidden_states = self.get_model()(tokens, tokens)
            if self.model_config.runner_type == "generate":
                self.get_model().compute_logits(hidden_states[:num_rows])

    def _attention_layers(self) -> dict[str, Any]:
        """Layers with a KV cache, by name: they entered themselves while the model was built."""
        return self.compilation_config.static_forward_context

    def _long(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, pin_memory=self.pin_memory).to(self.device)
