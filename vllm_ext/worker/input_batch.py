"""The requests a worker knows, in arrays, and the flat batch of one step that is cut out of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.scheduler_output import NewRequestData, SchedulerOutput
from vllm_ext.errors import EngineError
from vllm_ext.worker.sampling.batch import IntArray, SamplingBatch
from vllm_ext.worker.sampling.plugin_logits_processors import LogitsProcessors


@dataclass(slots=True)
class StepInputs:
    """One step in host memory; ``reqs`` requests stand one after the other in the flat batch of ``tokens``."""

    req_ids: list[str]
    slots: IntArray
    """``[reqs]``: rows of the :class:`InputBatch`."""
    input_ids: IntArray
    """``[tokens]``"""
    positions: IntArray
    """``[tokens]``"""
    query_start_loc: IntArray
    """``[reqs + 1]``: request ``i`` owns tokens ``[loc[i], loc[i + 1])``."""
    seq_lens: IntArray
    """``[reqs]``: tokens of the request once this step is done."""
    is_prefilling: npt.NDArray[np.bool_]
    """``[reqs]``: whether some of the request's prompt was not computed before."""
    token_rows: IntArray | slice
    """``[tokens]``: which request each token belongs to; all in order when each request has one."""
    sampling_reqs: IntArray
    """``[rows]``: requests whose known tokens are all computed then, so that they get a new one."""

    @property
    def is_decode(self) -> bool:
        """Whether each request has one token, and none of a prompt."""
        return isinstance(self.token_rows, slice) and not self.is_prefilling.any()


def resumed(scheduler_output: SchedulerOutput) -> Iterator[tuple[str, int]]:
    """Preempted requests that run again in this step, each with how many of its tokens need not be computed."""
    cached = scheduler_output.scheduled_cached_reqs
    # Most steps have none, and are not searched for any.
    if cached.resumed_req_ids:
        for req_id, num_computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if req_id in cached.resumed_req_ids:
                yield req_id, num_computed


class InputBatch:
    """A row ("slot") for each known request: its tokens, how many were computed, its cache blocks, and how its tokens
    are chosen.

    Slots are not moved when others are freed: a step picks its rows by index.
    """

    def __init__(
        self,
        max_num_reqs: int,
        max_model_len: int,
        blocks_per_req: list[int],
        processors: LogitsProcessors,
        device: torch.device,
    ) -> None:
        self.max_num_reqs = max_num_reqs
        # Zeroed memory that is never touched is never backed by pages: the arrays cost what the requests use.
        # One more than max_model_len: the last token that is sampled is noted before the request ends.
        self.token_ids = np.zeros((max_num_reqs, max_model_len + 1), dtype=np.int32)
        self.num_tokens = np.zeros(max_num_reqs, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_num_reqs, dtype=np.int64)
        self.num_computed = np.zeros(max_num_reqs, dtype=np.int64)
        self.block_tables = [np.zeros((max_num_reqs, width), dtype=np.int32) for width in blocks_per_req]
        self.num_blocks = [np.zeros(max_num_reqs, dtype=np.int64) for _ in blocks_per_req]
        self.sampling = SamplingBatch(self.token_ids, self.num_tokens, self.num_prompt_tokens, processors, device)
        self.slot_of: dict[str, int] = {}
        self._free = list(range(max_num_reqs - 1, -1, -1))
        self._params: dict[str, SamplingParams | None] = {}
        """Of every request that has not ended, also of one that was preempted and has no slot."""
        self._num_prompt_tokens_of_preempted: dict[str, int] = {}

    def update(self, scheduler_output: SchedulerOutput) -> None:
        """Forget who ended, take the slots of who was preempted, add who is new or resumed, and note the new blocks of
        the others.
        """
        for req_id in scheduler_output.preempted_req_ids or ():
            self.preempt(req_id)
        for req_id in scheduler_output.finished_req_ids:
            self.remove(req_id)
        for new in scheduler_output.scheduled_new_reqs:
            self.add(new)
        cached = scheduler_output.scheduled_cached_reqs
        for req_id in cached.resumed_req_ids:
            self._resume(req_id, cached.all_token_ids[req_id])
        if cached.req_ids:
            slots = [self.slot_of[req_id] for req_id in cached.req_ids]
            self.num_computed[slots] = cached.num_computed_tokens
            for slot, new_blocks in zip(slots, cached.new_block_ids, strict=True):
                if new_blocks is not None:
                    self._append_blocks(slot, new_blocks)

    def add(self, new: NewRequestData) -> None:
        """Give a request a slot.

        Raises:
            EngineError: more requests than ``max_num_seqs`` are in flight.
        """
        self._params[new.req_id] = new.sampling_params
        num_prompt_tokens = len(new.prompt_token_ids) - new.num_output_tokens
        slot = self._take_slot(new.req_id, new.prompt_token_ids, num_prompt_tokens)
        self.num_computed[slot] = new.num_computed_tokens
        self._append_blocks(slot, new.block_ids)

    def remove(self, req_id: str) -> None:
        """Forget a request, and free its slot; ids that are not known are passed over."""
        self._free_slot(req_id)
        self._params.pop(req_id, None)
        self._num_prompt_tokens_of_preempted.pop(req_id, None)

    def preempt(self, req_id: str) -> None:
        """Free a request's slot until it is resumed; ids that have none are passed over."""
        slot = self._free_slot(req_id)
        if slot is not None:
            self._num_prompt_tokens_of_preempted[req_id] = int(self.num_prompt_tokens[slot])

    def _resume(self, req_id: str, token_ids: list[int]) -> None:
        """Give a preempted request a slot without blocks; a scheduler need not have told of the preemption before."""
        self.preempt(req_id)
        self._take_slot(req_id, token_ids, self._num_prompt_tokens_of_preempted.pop(req_id))

    def _take_slot(self, req_id: str, token_ids: list[int], num_prompt_tokens: int) -> int:
        if not self._free:
            raise EngineError(
                f"request {req_id!r} comes on top of {self.max_num_reqs} that the worker holds already, which is "
                "engine.max_num_seqs; the scheduler has to finish one first"
            )
        slot = self.slot_of[req_id] = self._free.pop()
        self.token_ids[slot, : len(token_ids)] = token_ids
        self.num_tokens[slot] = len(token_ids)
        self.num_prompt_tokens[slot] = num_prompt_tokens
        params = self._params[req_id]
        if params is not None:
            self.sampling.add(slot, params, token_ids[num_prompt_tokens:])
        for counts in self.num_blocks:
            counts[slot] = 0
        return slot

    def _free_slot(self, req_id: str) -> int | None:
        slot = self.slot_of.pop(req_id, None)
        if slot is not None:
            self.sampling.remove(slot)
            self._free.append(slot)
        return slot

    def append_tokens(self, slots: IntArray, token_ids: IntArray) -> None:
        """Note one new token for each of ``slots``."""
        self.token_ids[slots, self.num_tokens[slots]] = token_ids
        self.num_tokens[slots] += 1
        self.sampling.append_tokens(slots, token_ids)

    def make_step(self, num_scheduled_tokens: dict[str, int]) -> StepInputs:
        """Cut the step's tokens out of the rows."""
        req_ids = list(num_scheduled_tokens)
        num_reqs = len(req_ids)
        slots = np.fromiter((self.slot_of[req_id] for req_id in req_ids), np.int64, num_reqs)
        counts = np.fromiter(num_scheduled_tokens.values(), np.int64, num_reqs)
        computed = self.num_computed[slots]
        query_start_loc = np.zeros(num_reqs + 1, dtype=np.int64)
        np.cumsum(counts, out=query_start_loc[1:])
        token_rows: IntArray | slice
        if query_start_loc[-1] == num_reqs:
            token_rows, positions = slice(None), computed
        else:
            token_rows = np.repeat(np.arange(num_reqs), counts)
            positions = np.arange(query_start_loc[-1]) + (computed - query_start_loc[:-1])[token_rows]
        seq_lens = computed + counts
        return StepInputs(
            req_ids=req_ids,
            slots=slots,
            input_ids=self.token_ids[slots[token_rows], positions],
            positions=positions,
            query_start_loc=query_start_loc,
            seq_lens=seq_lens,
            is_prefilling=computed < self.num_prompt_tokens[slots],
            token_rows=token_rows,
            sampling_reqs=np.flatnonzero(seq_lens >= self.num_tokens[slots]),
        )

    def block_table(self, group: int, step: StepInputs, block_size: int) -> tuple[IntArray, IntArray]:
        """The step's cache blocks, ``[reqs, blocks]``, and where each of its tokens is stored, ``[tokens]``."""
        width = -(-int(step.seq_lens.max()) // block_size)
        table = self.block_tables[group][step.slots, :width]
        rows = np.arange(len(step.slots))[step.token_rows]
        blocks = table[rows, step.positions // block_size].astype(np.int64)
        return table, blocks * block_size + step.positions % block_size

    def _append_blocks(self, slot: int, block_ids: tuple[list[int], ...]) -> None:
        for table, counts, ids in zip(self.block_tables, self.num_blocks, block_ids, strict=True):
            start = int(counts[slot])
            table[slot, start : start + len(ids)] = ids
            counts[slot] = start + len(ids)
