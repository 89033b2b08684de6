"""The scheduler: who runs in the next step, with how many tokens, and what a step's tokens mean for the requests.

There is no prefill phase and no decode phase. A request has tokens, some of them computed; a step computes some more.
A prompt longer than the step's token budget is therefore computed in chunks, beside the decoding requests.
"""

from __future__ import annotations

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler import SchedulerInterface
from vllm_ext.contracts.scheduler_output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_ext.engine.scheduling.request import (
    EngineCoreOutput,
    PooledResult,
    Request,
    RequestStatus,
    TokenLogprobs,
    sampled_logprobs,
)
from vllm_ext.engine.scheduling.request_order import insert_in_order
from vllm_ext.engine.scheduling.requests_in_flight import RequestsInFlight
from vllm_ext.errors import EngineError


class Scheduler(RequestsInFlight, SchedulerInterface):
    """Requests in one order, by which they are admitted, are given tokens, and keep their blocks.

    With the policy ``fcfs`` it is the order of their arrival; with ``priority`` that of their ``priority`` value, lower
    first, and of their arrival among equals. What runs is always at the front of what is in flight, except where a
    request came later that is before others: it is admitted next, but takes nobody's place.

    Fairness:
        - Nobody overtakes: while the first of the queue does not fit, the others wait behind it.
        - When blocks run out, the last of the running requests gives its own up and is computed again later. It goes
          back to its place in the order, before all that arrived after it, and no request is admitted in that step.
        - So the first of all running requests gets tokens in every step and is never preempted for another; it ends,
          and then the next one is the first. No request starves under ``fcfs``. Under ``priority`` one waits as long as
          there are others with a lower value, however many of them come; among equals nobody starves.
    """

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's tokens, give them cache slots, and count them as computed."""
        num_scheduled_tokens: dict[str, int] = {}
        cached = CachedRequestData()
        new: list[NewRequestData] = []
        num_preemptions_before = self.num_preemptions
        budget = self._schedule_running(cached, num_scheduled_tokens)
        self._tell_of_those_left_out(cached, num_scheduled_tokens)
        # Blocks that were given up for some are not for others: they would be the next to be preempted.
        if self.num_preemptions == num_preemptions_before:
            budget = self._schedule_waiting(new, cached, num_scheduled_tokens, budget)
        preempted, self._preempted_req_ids = self._preempted_req_ids, set()
        return SchedulerOutput(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=num_scheduled_tokens,
            total_num_scheduled_tokens=self.max_num_batched_tokens - budget,
            finished_req_ids=self._finished_req_ids.copy(),
            preempted_req_ids=preempted,
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        """Add the step's tokens to their requests and end those that are complete.

        Returns: what is new, for each request that got a token.

        Raises:
            EngineError: the worker left out a request, gave tokens where none were due, or what is no token id.
        """
        self._finished_req_ids -= scheduler_output.finished_req_ids
        outputs: list[EngineCoreOutput] = []
        any_finished = False
        model_output, requests = model_runner_output, self.requests
        sampled, index = self._sampled.rows(model_output.sampled_token_ids), model_output.req_id_to_index
        vocab_size = self._sampled.vocab_size
        for request_id in scheduler_output.num_scheduled_tokens:
            request = requests[request_id]
            position = index.get(request_id)
            if request.pooling_params is not None:
                if (output := _pooled_output(request, position, model_output)) is None:
                    continue
            else:
                new_token_ids = [] if position is None else sampled[position]
                # One plain integer is what nearly every request has in nearly every step.
                if not (
                    type(new_token_ids) is list
                    and len(new_token_ids) == 1
                    and type(new_token_ids[0]) is int
                    and 0 <= new_token_ids[0] < vocab_size
                ):
                    new_token_ids = self._sampled.token_ids(new_token_ids, request_id)
                if bool(new_token_ids) != (request.num_computed_tokens == len(request.all_token_ids)):
                    raise _unexpected_tokens(request, new_token_ids)
                if not new_token_ids:
                    continue
                kept = request.append_tokens(new_token_ids, self._max_total_tokens)
                output = EngineCoreOutput(request_id, kept, num_cached_tokens=request.num_cached_tokens)
                if model_output.logprobs:
                    output.new_logprobs = sampled_logprobs(model_output, index[request_id], len(kept), request)
                output.new_prompt_logprobs = TokenLogprobs.of(model_output.prompt_logprobs_dict.get(request_id))
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

    # Parts of a step ----------------------------------------------------------------------------------------------

    def _schedule_running(self, cached: CachedRequestData, num_scheduled_tokens: dict[str, int]) -> int:
        """Fill in the running requests; returns what is left of the token budget."""
        budget = self.max_num_batched_tokens
        running = self.running
        position = 0
        # A preemption shortens the list at its end.
        while position < len(running) and budget > 0:
            request = running[position]
            num_computed, num_tokens = request.num_computed_tokens, len(request.all_token_ids)
            num_new_tokens = min(num_tokens - num_computed, budget)
            new_block_ids = None
            if num_computed + num_new_tokens > request.num_slots:
                # More than the whole cache holds can only come with a window, chunk by chunk.
                num_new_tokens = min(num_new_tokens, self.kv_cache_manager.max_num_new_tokens(num_computed))
                block_ids = self._allocate_or_preempt(request, num_new_tokens)
                if block_ids is None:
                    break
                new_block_ids = self.kv_cache_manager.group_block_ids(block_ids)
            cached.req_ids.append(request.request_id)
            cached.new_block_ids.append(new_block_ids)
            cached.num_computed_tokens.append(num_computed)
            cached.num_output_tokens.append(num_tokens - request.num_prompt_tokens)
            num_scheduled_tokens[request.request_id] = num_new_tokens
            request.num_computed_tokens = num_computed + num_new_tokens
            budget -= num_new_tokens
            position += 1
        return budget

    def _tell_of_those_left_out(self, cached: CachedRequestData, num_scheduled_tokens: dict[str, int]) -> None:
        """Tokens of those who run now and had no part in the step before; then note who has none in this one."""
        for request in self._left_out:
            if request.status is RequestStatus.RUNNING and request.request_id in num_scheduled_tokens:
                cached.all_token_ids[request.request_id] = request.all_token_ids.copy()
        self._left_out = self.running[len(cached.req_ids) :]

    def _schedule_waiting(
        self, new: list[NewRequestData], cached: CachedRequestData, num_scheduled_tokens: dict[str, int], budget: int
    ) -> int:
        """Admit waiting requests in their order, until one does not fit; returns what is left of the budget."""
        pool = self.kv_cache_manager.block_pool
        # At least the last token needs a block that nobody shares.
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs and pool.num_free_blocks:
            request = self.waiting[0]
            computed_blocks = self.kv_cache_manager.get_computed_blocks(request)
            num_computed = len(computed_blocks) * self.kv_cache_manager.block_size
            fitting = self.kv_cache_manager.max_num_new_tokens(num_computed)
            num_new_tokens = min(request.num_tokens - num_computed, budget, fitting)
            if self.needs_whole_prompts and num_new_tokens < request.num_tokens:
                break
            # A long prompt is computed in chunks, but it is admitted only where the whole of it fits: otherwise it
            # would be preempted halfway for those that run, and begin anew.
            block_ids = self.kv_cache_manager.allocate_slots(
                request, num_new_tokens, computed_blocks, full_sequence_must_fit=True
            )
            if block_ids is None:
                break
            self._admit(
                self.waiting.pop(0), self.kv_cache_manager.group_block_ids(block_ids), num_computed, new, cached
            )
            num_scheduled_tokens[request.request_id] = num_new_tokens
            request.num_computed_tokens = num_computed + num_new_tokens
            budget -= num_new_tokens
        return budget

    def _admit(
        self,
        request: Request,
        block_ids: tuple[list[int], ...],
        num_computed: int,
        new: list[NewRequestData],
        cached: CachedRequestData,
    ) -> None:
        """Let a request run that waited, and enter it where the worker looks for it."""
        is_new = request.status is RequestStatus.WAITING
        request.status = RequestStatus.RUNNING
        insert_in_order(self.running, request)
        if is_new:
            request.num_cached_tokens = num_computed
            new.append(
                NewRequestData(
                    req_id=request.request_id,
                    prompt_token_ids=request.all_token_ids.copy(),
                    sampling_params=request.sampling_params,
                    block_ids=block_ids,
                    num_computed_tokens=num_computed,
                    pooling_params=request.pooling_params,
                )
            )
            return
        cached.req_ids.append(request.request_id)
        cached.new_block_ids.append(block_ids)
        cached.num_computed_tokens.append(num_computed)
        cached.num_output_tokens.append(request.num_output_tokens)
        cached.resumed_req_ids.add(request.request_id)
        cached.all_token_ids[request.request_id] = request.all_token_ids.copy()

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


def _pooled_output(request: Request, position: int | None, model_output: ModelRunnerOutput) -> EngineCoreOutput | None:
    """What pooling gave for a request, which ends with it; ``None`` while its prompt is not complete, EngineError where
    it is missing.
    """
    if request.num_computed_tokens < request.num_tokens:
        return None
    result = model_output.pooler_output[position] if position is not None and model_output.pooler_output else None
    if result is None:
        raise EngineError(
            f"the worker returned no pooler_output for request {request.request_id!r}, whose {request.num_tokens} "
            "tokens are all computed"
        )
    pooled = PooledResult.of(result)
    request.status = RequestStatus.FINISHED_STOPPED
    return EngineCoreOutput(request.request_id, [], num_cached_tokens=request.num_cached_tokens, pooled=pooled)


def _unexpected_tokens(request: Request, new_token_ids: list[int]) -> EngineError:
    due = "one was due" if not new_token_ids else "none was due, since its prompt is not complete"
    return EngineError(
        f"the worker returned {len(new_token_ids)} tokens for request {request.request_id!r}, where {due} "
        f"({request.num_computed_tokens} of {request.num_tokens} tokens computed)"
    )
