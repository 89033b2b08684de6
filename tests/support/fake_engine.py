"""A worker without a model, and what an engine on it needs.

Its next token is a pure function of the tokens so far. It keeps the books of its KV cache: a token may only be
computed into a block that nobody else had before this step, and every token of the request so far has to be where its
blocks say, with all that came before it, whoever wrote it. As in a layer, all of a step is stored before anything
is read. With a sliding window in the model's configuration that goes for the tokens that those of the step see, and
for the blocks that hold them.
"""

from __future__ import annotations

import functools
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vllm_ext.config import Settings
from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm_ext.contracts.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm_ext.contracts.platform import Platform, PlatformEnum
from vllm_ext.contracts.scheduler_output import CachedRequestData, SchedulerOutput
from vllm_ext.contracts.stat_logger import StatLoggerFactory
from vllm_ext.contracts.vllm_config import (
    CacheConfig,
    HFConfig,
    ModelConfig,
    SchedulerConfig,
    SchedulingPolicy,
    VllmConfig,
    set_current_vllm_config,
)
from vllm_ext.contracts.worker import CompilationTimes, WorkerBase
from vllm_ext.dispatch.io_processor import LoadedIOProcessor
from vllm_ext.dispatch.logits_processors import NamedLogitsProcessor
from vllm_ext.dispatch.stat_loggers import StatLoggers
from vllm_ext.engine.executors.uniproc import UniProcExecutor
from vllm_ext.engine.scheduling.scheduler import Scheduler
from vllm_ext.plan import BoundPlan, Plan

VOCAB_SIZE = 1000
BYTES_PER_BLOCK_TOKEN = 2 * 2 * 8 * 4 * 2
"""Bytes of a token in the fake cache: key and value, 2 heads of 8 numbers in float32, 2 layers."""

NextToken = Callable[[list[int]], int]


def checksum_token(token_ids: list[int]) -> int:
    """The next token as a function of all tokens so far; never 0, so that 0 can be end of sequence."""
    return 1 + zlib.crc32(repr(token_ids).encode()) % (VOCAB_SIZE - 1)


def continuation(prompt: list[int], num_tokens: int, next_token: NextToken = checksum_token) -> list[int]:
    """What the fake worker generates after ``prompt``."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class FakePlatform(Platform):
    _enum = PlatformEnum.OOT
    device_name = "fake"
    device_type = "cpu"


@dataclass
class _Known:
    """What the worker remembers of a request."""

    token_ids: list[int]
    block_ids: list[int]
    num_computed_tokens: int
    num_prompt_tokens: int
    contents: list[int] = field(default_factory=list)
    """By position: a number for the token there and all before it."""

    def take_blocks(self) -> None:
        self.block_ids, self.num_computed_tokens, self.contents = [], 0, []

    def contents_up_to(self, end: int) -> list[int]:
        for position in range(len(self.contents), end):
            before = self.contents[-1] if self.contents else 0
            self.contents.append(hash((before, position, self.token_ids[position])))
        return self.contents


@dataclass
class Step:
    """One step as the worker saw it."""

    num_scheduled_tokens: dict[str, int]
    new: dict[str, int]
    """Requests seen for the first time, or resumed, and how many of their tokens are said to be generated."""
    cached: dict[str, int]
    """The same requests, and how many of their tokens are said to be in the cache."""
    finished: set[str]
    preempted: set[str]
    resumed: set[str]


class FakeWorker(WorkerBase):
    """See the module. ``steps`` is the record of what it was asked to do, ``calls`` of the start-up methods."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.calls: list[str] = []
        self.steps: list[Step] = []
        self.requests: dict[str, _Known] = {}
        self.next_token: NextToken = checksum_token
        self.available_memory = 1 << 30
        self.before_step: Callable[[], None] = lambda: None
        self.asleep: set[str] = set()
        self._cache: dict[tuple[int, int], int] = {}
        self._windows = self.model_config.hf_config.get("sliding_windows", (None, None))
        """By layer."""

    def init_device(self) -> None:
        self.calls.append("init_device")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        self.calls.append("load_model")

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        self.calls.append("get_kv_cache_spec")
        spec = FullAttentionSpec(self.cache_config.block_size, num_kv_heads=2, head_size=8, dtype=torch.float32)
        return {f"layers.{i}": replace(spec, sliding_window=window) for i, window in enumerate(self._windows)}

    def determine_available_memory(self) -> int:
        self.calls.append("determine_available_memory")
        return self.available_memory

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        self.calls.append("initialize_from_config")
        self.kv_cache_config = kv_cache_config

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None:
        self.calls.append("initialize_cache")
        super().initialize_cache(num_gpu_blocks, num_cpu_blocks)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        self.calls.append("compile_or_warm_up_model")
        return CompilationTimes()

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        self.before_step()
        assert not self.asleep, "a step is made while memory sleeps"
        self._remember(scheduler_output)
        scheduled = scheduler_output.num_scheduled_tokens
        assert scheduler_output.total_num_scheduled_tokens == sum(scheduled.values())
        assert scheduler_output.total_num_scheduled_tokens <= self.scheduler_config.max_num_batched_tokens
        assert len(scheduled) <= self.scheduler_config.max_num_seqs
        self._check_blocks()
        if not scheduled:
            return EMPTY_MODEL_RUNNER_OUTPUT
        req_ids = list(scheduled)
        for req_id, num_tokens in scheduled.items():
            self._store(req_id, num_tokens)
        sampled = [self._attend(req_id, num_tokens) for req_id, num_tokens in scheduled.items()]
        return ModelRunnerOutput(req_ids, {req_id: i for i, req_id in enumerate(req_ids)}, sampled)

    def sleep(self, level: int = 1) -> None:
        self.calls.append(f"sleep {level}")
        self._cache.clear()
        self.asleep = {"weights", "kv_cache"}

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(f"wake_up {tags}")
        self.asleep -= self.asleep if tags is None else set(tags)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def _remember(self, output: SchedulerOutput) -> None:
        new = {data.req_id: data.num_output_tokens for data in output.scheduled_new_reqs}
        in_cache = {data.req_id: data.num_computed_tokens for data in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        resumed, preempted = set(cached.resumed_req_ids), set(output.preempted_req_ids or ())
        columns = zip(cached.req_ids, cached.num_output_tokens, cached.num_computed_tokens, strict=True)
        for req_id, num_output_tokens, num_computed in columns:
            if req_id in resumed:
                new[req_id], in_cache[req_id] = num_output_tokens, num_computed
        finished = set(output.finished_req_ids)
        self.steps.append(Step(dict(output.num_scheduled_tokens), new, in_cache, finished, preempted, resumed))
        for req_id in preempted:
            self.requests[req_id].take_blocks()
        for req_id in output.finished_req_ids:
            self.requests.pop(req_id, None)
        for data in output.scheduled_new_reqs:
            assert data.req_id not in self.requests
            block_ids = self._of_all_groups(data.block_ids)
            tokens = data.prompt_token_ids
            self.requests[data.req_id] = _Known(tokens, list(block_ids), data.num_computed_tokens, len(tokens))
        self._check_cached(cached)
        for req_id, block_ids, num_computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            known = self.requests[req_id]
            if req_id in resumed:
                assert not known.block_ids, "a request is resumed that was not preempted"
                known.num_computed_tokens = num_computed
            known.block_ids += self._of_all_groups(block_ids) if block_ids is not None else []
            assert known.num_computed_tokens == num_computed
        assert {*new, *cached.req_ids} == set(output.num_scheduled_tokens)

    def _check_cached(self, cached: CachedRequestData) -> None:
        """That what is told of known requests is what the worker knows of them."""
        for req_id, num_output_tokens in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            known = self.requests[req_id]
            assert num_output_tokens == len(known.token_ids) - known.num_prompt_tokens
        before = self.steps[-2].num_scheduled_tokens if len(self.steps) > 1 else {}
        unseen = {req_id for req_id in cached.req_ids if req_id not in before} | cached.resumed_req_ids
        assert cached.all_token_ids == {req_id: self.requests[req_id].token_ids for req_id in unseen}

    def _of_all_groups(self, block_ids: tuple[list[int], ...]) -> list[int]:
        assert len(block_ids) == len(self.kv_cache_config.kv_cache_groups)
        assert all(ids == block_ids[0] for ids in block_ids), "groups have different blocks"
        return block_ids[0]

    def first_seen(self, known: _Known) -> int:
        """The first position that the next token to compute sees."""
        if None in self._windows:
            return 0
        return max(0, known.num_computed_tokens + 1 - max(self._windows))

    def _seen_blocks(self, known: _Known) -> list[int]:
        return known.block_ids[self.first_seen(known) // self.cache_config.block_size :]

    def _check_blocks(self) -> None:
        for known in self.requests.values():
            seen = self._seen_blocks(known)
            assert len(seen) == len(set(seen)), "a request has a block twice"
            assert all(0 <= block < self.kv_cache_config.num_blocks for block in known.block_ids)
        old = [known for req_id, known in self.requests.items() if req_id not in self.steps[-1].new]
        self._num_old_owners = Counter(block for known in old for block in self._seen_blocks(known))
        self._written: set[tuple[int, int]] = set()

    def _store(self, req_id: str, num_tokens: int) -> None:
        known = self.requests[req_id]
        start, end = known.num_computed_tokens, known.num_computed_tokens + num_tokens
        assert num_tokens > 0
        assert end <= len(known.token_ids), "a token is computed before it is known"
        contents = known.contents_up_to(end)
        for position in range(start, end):
            slot = self._slot(known, position)
            is_new = req_id in self.steps[-1].new
            assert self._num_old_owners[slot[0]] == (not is_new), "a token is written into a block of another request"
            assert slot not in self._written, "two tokens of a step are written into one place"
            self._written.add(slot)
            self._cache[slot] = contents[position]

    def _attend(self, req_id: str, num_tokens: int) -> list[int]:
        known = self.requests[req_id]
        first, end = self.first_seen(known), known.num_computed_tokens + num_tokens
        contents = known.contents_up_to(end)
        for position in range(first, end):
            assert self._cache[self._slot(known, position)] == contents[position], "the cache holds something else"
        known.num_computed_tokens = end
        if end < len(known.token_ids):
            return []
        known.token_ids.append(self.next_token(known.token_ids))
        return known.token_ids[-1:]

    def _slot(self, known: _Known, position: int) -> tuple[int, int]:
        block_size = self.cache_config.block_size
        return known.block_ids[position // block_size], position % block_size


@dataclass
class FakeDispatcher:
    """Builds :class:`FakeWorker`, or another class, for ``vllm_config``; ``prepare`` may change it before start-up."""

    vllm_config: VllmConfig
    worker_cls: type[WorkerBase] = FakeWorker
    prepare: Callable[[WorkerBase], None] = lambda worker: None
    platform: Platform = field(default_factory=FakePlatform)
    platform_name: str = "platform 'fake'"
    settings: Settings = field(default_factory=Settings)
    scheduler: type[Scheduler] = Scheduler
    bound_plan: BoundPlan = field(default_factory=lambda: Plan((), Settings()).bind(None))
    worker: WorkerBase | None = None
    logits_processors: tuple[NamedLogitsProcessor, ...] = ()
    stat_logger_factories: Sequence[StatLoggerFactory] = ()
    clock: Callable[[], float] = time.monotonic

    @functools.cached_property
    def stat_loggers(self) -> StatLoggers:
        return StatLoggers(self.bound_plan, self.stat_logger_factories)

    io_processor: LoadedIOProcessor = field(default_factory=lambda: LoadedIOProcessor(None))

    def load_stat_loggers(self) -> None:
        _ = self.stat_loggers

    def load_io_processor(self) -> None:
        pass

    @contextmanager
    def activate(self) -> Iterator[None]:
        with use_platform(self.platform), set_current_vllm_config(self.vllm_config):
            yield

    def worker_factory(self, **kwargs: object) -> WorkerBase:
        with self.activate():
            self.worker = self.worker_cls(self.vllm_config, **kwargs)  # type: ignore[arg-type]
        self.prepare(self.worker)
        return self.worker

    def update_block_size(self) -> None:
        self.platform.update_block_size_for_backend(self.vllm_config)

    def scheduler_cls(self) -> type[Scheduler]:
        return self.scheduler

    def scheduler_factory(self, kv_cache_config: KVCacheConfig) -> Scheduler:
        return self.scheduler(self.vllm_config, kv_cache_config)

    def executor_factory(self) -> UniProcExecutor:
        return UniProcExecutor(self)  # type: ignore[arg-type]


def make_vllm_config(
    model: Path | str = "no-model",
    *,
    max_model_len: int = 128,
    block_size: int = 4,
    num_blocks: int | None = None,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    enable_prefix_caching: bool = True,
    policy: SchedulingPolicy = "fcfs",
    enable_sleep_mode: bool = False,
    **hf_values: object,
) -> VllmConfig:
    """A configuration for the fake worker; ``num_blocks`` sets the memory of the cache to that many blocks."""
    memory = None if num_blocks is None else num_blocks * block_size * BYTES_PER_BLOCK_TOKEN
    return VllmConfig(
        model_config=ModelConfig(
            model=str(model),
            hf_config=HFConfig({"vocab_size": VOCAB_SIZE, **hf_values}),
            dtype=torch.float32,
            max_model_len=max_model_len,
            tokenizer=str(model),
            original_max_model_len=max_model_len,
            enable_sleep_mode=enable_sleep_mode,
        ),
        cache_config=CacheConfig(
            block_size=block_size, kv_cache_memory_bytes=memory, enable_prefix_caching=enable_prefix_caching
        ),
        scheduler_config=SchedulerConfig(max_num_seqs, max_num_batched_tokens, policy),
    )
