"""The worker for models that pool: its steps end with a result for each prompt, and not with a token."""

from __future__ import annotations

from typing import Any

import torch

from vllm_ext.contracts.attention import CommonAttentionMetadata
from vllm_ext.contracts.kv_cache import KVCacheConfig, KVCacheSpec
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.pooler import PoolingMetadata
from vllm_ext.contracts.pooling_params import SECOND_TEXT, PoolingParams
from vllm_ext.contracts.scheduler_output import NewRequestData, SchedulerOutput
from vllm_ext_dummy_platform import calls
from vllm_ext_dummy_platform.my_dummy_worker import KVCacheGroup, MyDummyWorker, RequestState, Span


class MyDummyPoolingWorker(MyDummyWorker):
    """Serves encoders, which have no KV cache, and decoders that pool, whose prompts may come in chunks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pooling_params: dict[str, PoolingParams] = {}
        self.states: dict[str, list[torch.Tensor]] = {}
        """By request: the states of the tokens of the chunks so far."""

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        return {name: spec for name, spec in super().get_kv_cache_spec().items() if spec is not None}

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        super().initialize_from_config(kv_cache_config)
        if not self.groups and (layers := self._attention_layers()):
            first = next(iter(layers.values()))
            spec = first.get_builder_spec(self.vllm_config)
            builder = first.attn_backend.get_builder_cls()(spec, list(layers), self.vllm_config, self.device)
            self.groups = [KVCacheGroup(list(layers), builder)]
            self.block_size = 0

    def get_supported_tasks(self) -> tuple[str, ...]:
        return tuple(sorted(self.get_model().pooler.get_supported_tasks()))

    def get_whole_prompt_tasks(self) -> tuple[str, ...]:
        return tuple(task for task in self.get_supported_tasks() if self.get_model().pooler.needs_all_tokens(task))

    def _finish(self, output: ModelRunnerOutput, spans: list[Span], hidden_states: torch.Tensor) -> None:
        rows = hidden_states.split([span.last - span.first for span in spans])
        output.pooler_output = [self._pool(span, states) for span, states in zip(spans, rows, strict=True)]

    def _pool(self, span: Span, states: torch.Tensor) -> torch.Tensor | None:
        """The result of a prompt that is complete; ``None`` for another."""
        self.states[span.req_id].append(states)
        if not span.is_complete:
            return None
        calls["pooled"] += 1
        whole = torch.cat(self.states.pop(span.req_id))
        metadata = PoolingMetadata(
            [self.pooling_params[span.req_id]], self._long([span.last]), self._long([0, whole.shape[0]])
        )
        (result,) = self.get_model().pooler(whole, metadata)
        return result.cpu()

    def _update_requests(self, scheduler_output: SchedulerOutput) -> None:
        for req_id in scheduler_output.finished_req_ids:
            self.states.pop(req_id, None)
            self.pooling_params.pop(req_id, None)
        super()._update_requests(scheduler_output)

    def _add_request(self, new: NewRequestData) -> None:
        if new.pooling_params is None:
            raise ValueError(f"request {new.req_id!r} has no pooling_params, and the model pools")
        self.states[new.req_id], self.pooling_params[new.req_id] = [], new.pooling_params
        if new.block_ids:
            super()._add_request(new)
        else:
            self.requests[new.req_id] = RequestState(list(new.prompt_token_ids), 0, None, [], 0)

    def _forget_computed(self, req_id: str, request: RequestState) -> None:
        super()._forget_computed(req_id, request)
        self.states[req_id] = []

    def _model_inputs(self, spans: list[Span]) -> dict[str, torch.Tensor]:
        """Which of two texts each token is of, where there are two."""
        params = [self.pooling_params[span.req_id] for span in spans]
        begins = [(each.extra_kwargs or {}).get(SECOND_TEXT) for each in params]
        if all(begin is None for begin in begins):
            return {}
        kinds = [
            int(begin is not None and position >= begin)
            for span, begin in zip(spans, begins, strict=True)
            for position in range(span.first, span.last)
        ]
        return {"token_type_ids": self._long(kinds)}

    def _common_metadata(self, spans: list[Span]) -> CommonAttentionMetadata:
        if self.block_size:
            return super()._common_metadata(spans)
        # Without a KV cache, nobody has blocks, and every token sees all of its request.
        lens = torch.tensor([span.last for span in spans], dtype=torch.int32)
        starts = torch.tensor([0, *lens.tolist()], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=starts.to(self.device),
            query_start_loc_cpu=starts,
            seq_lens=lens.to(self.device),
            seq_lens_cpu=lens,
            num_reqs=len(spans),
            num_actual_tokens=int(lens.sum()),
            max_query_len=int(lens.max()),
            max_seq_len=int(lens.max()),
            block_table_tensor=torch.zeros((len(spans), 1), dtype=torch.int32, device=self.device),
            slot_mapping=torch.zeros(int(lens.sum()), dtype=torch.int64, device=self.device),
            causal=False,
        )
