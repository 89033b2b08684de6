"""The scheduler: who runs in the next step, with how many tokens, and what a step's tokens mean for the requests.

There is no prefill phase and no decode phase. A request has tokens, some of them computed; a step computes some more.
A prompt longer than the step's token budget is therefore computed in chunks, beside the decoding requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from vllm_ext.contracts.kv_cache import KVCacheConfig
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.engine.kv_cache_manager import KVCacheManager
from vllm_ext.engine.request import EngineCoreOutput, Request, RequestStatus
from vllm_ext.errors import EngineError, InvalidRequest


class Scheduler:
    """First come, first served: running requests in the order of their arrival, then waiting ones."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self.max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        self.max_num_batched_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.max_model_len = vllm_config.model_config.max_model_len
        self.kv_cache_manager = KVCacheManager(kv_cache_config, vllm_config.cache_config.block_size)
        # The last token of a request is never computed, so it needs no slot.
        self.max_total_tokens = min(self.max_model_len, self.kv_cache_manager.capacity + 1)
        self.requests: dict[str, Request] = {}
        """Every request that is not finished, by its id."""
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        # Requests that the workers can forget; they stay here until a step that says so is complete.
        self._finished_req_ids: set[str] = set()
        self.num_preemptions = 0
        """Preemptions since the engine started."""

    # The queue ----------------------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Put ``request`` at the end of the queue.

        Raises:
            InvalidRequest: it can never be served, or its id is in use; nothing is changed.
        """
        if request.request_id in self.requests:
            raise InvalidRequest(f"a request with the id {request.request_id!r} is in flight; ids have to be unique")
        self._check_length(request.num_prompt_tokens)
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def finish_requests(self, request_ids: Iterable[str], status: RequestStatus) -> None:
        """End requests from outside (an abort, a stop string); ids that are not in flight are passed over."""
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is None:
                continue
            if request.status is RequestStatus.RUNNING:
                self.running.remove(request)
                self._finished_req_ids.add(request_id)
            else:
                self.waiting.remove(request)
            request.status = status
            self._release(request)

    def abort_all(self) -> list[str]:
        """End every request after a step that did not complete; all blocks are free again.

        Returns: the ids of the requests that were ended.
        """
        ended = list(self.requests)
        # All of them, since one that changes its place just now is in no list; workers pass over unknown ids.
        self._finished_req_ids.update(self.requests)
        for request in self.requests.values():
            request.status = RequestStatus.FINISHED_ABORTED
        self.requests.clear()
        self.waiting.clear()
        self.running.clear()
        # A step may be broken off at any point, also while blocks change hands.
        self.kv_cache_manager.reset()
        return ended

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def has_requests(self) -> bool:
        """Whether a step has something to do: tokens to compute, or ended requests to tell the worker about."""
        return bool(self.requests or self._finished_req_ids)

    # One step -----------------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's tokens, give them cache slots, and count them as computed."""
        num_scheduled_tokens: dict[str, int] = {}
        cached = CachedRequestData()
        new: list[NewRequestData] = []
        budget = self._schedule_running(cached, num_scheduled_tokens)
        # A request that was just preempted is the first in the queue, and cannot fit: a block it gave back is in use.
        budget = self._schedule_waiting(new, num_scheduled_tokens, budget)
        return SchedulerOutput(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=num_scheduled_tokens,
            total_num_scheduled_tokens=self.max_num_batched_tokens - budget,
            finished_req_ids=self._finished_req_ids.copy(),
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_output: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        """Add the step's tokens to their requests and end those that are complete.

        Returns: what is new, for each request that got a token.

        Raises:
            EngineError: the worker left out a request, or gave tokens where none were due.
        """
        self._finished_req_ids -= scheduler_output.finished_req_ids
        outputs: list[EngineCoreOutput] = []
        any_finished = False
        sampled, index = model_output.sampled_token_ids, model_output.req_id_to_index
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests[request_id]
            position = index.get(request_id)
            new_token_ids = [] if position is None else sampled[position]
            if bool(new_token_ids) != (request.num_computed_tokens == request.num_tokens):
                raise _unexpected_tokens(request, new_token_ids)
            if not new_token_ids:
                continue
            num_kept = self._append_tokens(request, new_token_ids)
            output = EngineCoreOutput(request_id, new_token_ids[:num_kept])
            output.new_logprobs = model_output.logprobs.get(request_id)
            output.new_prompt_logprobs = model_output.prompt_logprobs_dict.get(request_id)
            if request.status is not RequestStatus.RUNNING:
                output.finish_reason = request.status.finish_reason
                output.stop_reason = request.stop_reason
                self._finished_req_ids.add(request_id)
                self._release(request)
                any_finished = True
            outputs.append(output)
        if any_finished:
            self.running = [r for r in self.running if r.status is RequestStatus.RUNNING]
        return outputs

    def check_integrity(self) -> None:
        """Check the KV cache accounting, and that an idle scheduler owns no block.

        Raises:
            EngineError: the accounting is broken.
        """
        self.kv_cache_manager.check_integrity()
        pool = self.kv_cache_manager.block_pool
        if not self.requests and pool.num_free_blocks != pool.num_blocks:
            raise EngineError(
                f"no request is in flight, yet only {pool.num_free_blocks} of {pool.num_blocks} cache blocks are free"
            )

    # Parts of a step ----------------------------------------------------------------------------------------------

    def _schedule_running(self, cached: CachedRequestData, num_scheduled_tokens: dict[str, int]) -> int:
        """Fill in the running requests; returns what is left of the token budget."""
        budget = self.max_num_batched_tokens
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            num_new_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
            block_ids = self._allocate_or_preempt(request, num_new_tokens)
            if block_ids is None:
                break
            cached.req_ids.append(request.request_id)
            cached.new_block_ids.append(self.kv_cache_manager.group_block_ids(block_ids) if block_ids else None)
            cached.num_computed_tokens.append(request.num_computed_tokens)
            num_scheduled_tokens[request.request_id] = num_new_tokens
            request.num_computed_tokens += num_new_tokens
            budget -= num_new_tokens
            position += 1
        return budget

    def _schedule_waiting(self, new: list[NewRequestData], num_scheduled_tokens: dict[str, int], budget: int) -> int:
        """Admit waiting requests in their order, until one does not fit; returns what is left of the budget."""
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            num_new_tokens = min(request.num_tokens, budget)
            # A long prompt is computed in chunks, but it is admitted only where the whole of it fits: otherwise it
            # would be preempted halfway for those that run, and begin anew.
            block_ids = self.kv_cache_manager.allocate_slots(request, num_new_tokens, full_sequence_must_fit=True)
            if block_ids is None:
                break
            self.running.append(self.waiting.popleft())
            request.status = RequestStatus.RUNNING
            new.append(
                NewRequestData(
                    req_id=request.request_id,
                    prompt_token_ids=request.all_token_ids.copy(),
                    sampling_params=request.sampling_params,
                    block_ids=self.kv_cache_manager.group_block_ids(block_ids),
                    num_computed_tokens=0,
                    num_output_tokens=request.num_output_tokens,
                )
            )
            num_scheduled_tokens[request.request_id] = num_new_tokens
            request.num_computed_tokens = num_new_tokens
            budget -= num_new_tokens
        return budget

    def _allocate_or_preempt(self, request: Request, num_new_tokens: int) -> list[int] | None:
        """Slots for a running request, taken from the last of the running ones where no block is free.

        Returns: blocks added; ``None`` if ``request`` was itself the last one and is preempted.
        """
        while (block_ids := self.kv_cache_manager.allocate_slots(request, num_new_tokens)) is None:
            victim = self.running.pop()
            self._preempt(victim)
            if victim is request:
                return None
        return block_ids

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks; it will be computed again from its first token, before all that wait now."""
        self.kv_cache_manager.free(request)
        self._finished_req_ids.add(request.request_id)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _append_tokens(self, request: Request, new_token_ids: list[int]) -> int:
        """Append tokens up to the one that ends the request; returns how many."""
        for count, token_id in enumerate(new_token_ids, 1):
            if request.append_token(token_id, self.max_total_tokens):
                return count
        return len(new_token_ids)

    def _release(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]

    def _check_length(self, num_prompt_tokens: int) -> None:
        if num_prompt_tokens >= self.max_model_len:
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, and max_model_len, the limit for prompt and output "
                f"together, is {self.max_model_len}; give at most {self.max_model_len - 1} tokens"
            )
        capacity = self.kv_cache_manager.capacity
        if num_prompt_tokens > capacity:
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, and the whole KV cache holds {capacity}; give a shorter "
                "prompt, or more memory with engine.kv_cache_memory"
            )


def _unexpected_tokens(request: Request, new_token_ids: list[int]) -> EngineError:
    due = "one was due" if not new_token_ids else "none was due, since its prompt is not complete"
    return EngineError(
        f"the worker returned {len(new_token_ids)} tokens for request {request.request_id!r}, where {due} "
        f"({request.num_computed_tokens} of {request.num_tokens} tokens computed)"
    )
