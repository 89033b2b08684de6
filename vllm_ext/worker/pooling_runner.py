"""The part of a step that pools: which prompts are complete, and what the model makes of their tokens' states."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.pooler import PoolingMetadata
from vllm_ext.contracts.pooling_params import SECOND_TEXT, PoolingParams
from vllm_ext.contracts.scheduler_output import NewRequestData, SchedulerOutput
from vllm_ext.errors import EngineError
from vllm_ext.worker.input_batch import IntArray, StepInputs, resumed


@dataclass(slots=True)
class _State:
    """A prompt on its way: the states of the tokens of its earlier chunks, as far as the pooler needs them."""

    params: PoolingParams
    needs_all_tokens: bool
    second_text: int | None
    chunks: list[torch.Tensor] = field(default_factory=list)


class PoolingRunner:
    """Keeps the requests of a pooling model, and pools those that are complete.

    Args:
        device: where the model lives.
    """

    pooler: Any
    """A :class:`Pooler`, that of the model, to be set with it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: dict[str, _State] = {}

    def update(self, scheduler_output: SchedulerOutput) -> None:
        """Forget who ended, add who is new, and begin anew with who was preempted.

        Raises:
            EngineError: a request has no pooling parameters, or begins in the middle of a prompt that is needed whole.
        """
        for req_id in scheduler_output.finished_req_ids:
            self._states.pop(req_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._states[new.req_id] = self._state_of(new)
        for req_id, num_computed in resumed(scheduler_output):
            state = self._states[req_id]
            _check_start(req_id, state, num_computed)
            state.chunks = []

    def model_inputs(self, step: StepInputs) -> dict[str, torch.Tensor]:
        """What the model gets by keyword: ``token_type_ids`` where a prompt of the step has two texts."""
        firsts = [self._states[req_id].second_text for req_id in step.req_ids]
        if all(first is None for first in firsts):
            return {}
        limit = np.iinfo(np.int64).max
        begins = np.array([limit if first is None else first for first in firsts], dtype=np.int64)
        kinds = step.positions >= begins[np.arange(len(begins))[step.token_rows]]
        return {"token_type_ids": torch.from_numpy(kinds.astype(np.int64)).to(self._device)}

    def pool(self, step: StepInputs, hidden_states: torch.Tensor) -> ModelRunnerOutput:
        """Results of the prompts that this step completes.

        Args:
            hidden_states: ``[tokens, hidden]``, of the step's tokens.
        """
        results: list[torch.Tensor | None] = [None] * len(step.req_ids)
        complete: list[int] = step.sampling_reqs.tolist()
        rows, lens = self._rows_of(step, hidden_states, set(complete))
        if complete:
            metadata = PoolingMetadata(
                pooling_params=[self._states[step.req_ids[req]].params for req in complete],
                prompt_lens=self._to_device(step.seq_lens[complete]),
                query_start_loc=self._to_device(np.concatenate(([0], np.cumsum(lens)))),
            )
            pooled = self.pooler(rows, metadata)
            for req, result in zip(complete, pooled, strict=True):
                results[req] = result.float().cpu()
        return ModelRunnerOutput(
            req_ids=step.req_ids,
            req_id_to_index=dict(zip(step.req_ids, count())),
            sampled_token_ids=[[] for _ in step.req_ids],
            pooler_output=results,
        )

    def _rows_of(
        self, step: StepInputs, hidden_states: torch.Tensor, complete: set[int]
    ) -> tuple[torch.Tensor, list[int]]:
        """States of the complete prompts, one prompt's after another's, and how many each has; those of the others
        are kept.
        """
        states = [self._states[req_id] for req_id in step.req_ids]
        lens: list[int] = np.diff(step.query_start_loc).tolist()
        if len(complete) == len(states) and not any(state.chunks for state in states):
            return hidden_states, lens
        parts: list[torch.Tensor] = []
        counts: list[int] = []
        for req, (state, rows) in enumerate(zip(states, hidden_states.split(lens), strict=True)):
            if req in complete:
                own, state.chunks = [*state.chunks, rows], []
                parts += own
                counts.append(sum(map(len, own)))
            elif state.needs_all_tokens:
                state.chunks.append(rows.clone())
        return torch.cat(parts) if parts else hidden_states[:0], counts

    def _state_of(self, new: NewRequestData) -> _State:
        params = new.pooling_params
        if params is None or params.task is None:
            raise EngineError(f"request {new.req_id!r} has no pooling parameters with a task, and the model pools")
        second_text = (params.extra_kwargs or {}).get(SECOND_TEXT)
        state = _State(params, self.pooler.needs_all_tokens(params.task), second_text)
        _check_start(new.req_id, state, new.num_computed_tokens)
        return state

    def _to_device(self, numbers: IntArray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(self._device)


def _check_start(req_id: str, state: _State, num_computed_tokens: int) -> None:
    if state.needs_all_tokens and num_computed_tokens:
        raise EngineError(
            f"request {req_id!r} begins after {num_computed_tokens} cached tokens, and its task, "
            f"{state.params.task!r}, needs the states of all tokens"
        )
