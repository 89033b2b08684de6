"""The engine with text at both ends: prompts in, request outputs out, one step at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core import EngineCore
from vllm_ext.engine.generation_config import load_default_sampling_params
from vllm_ext.engine.input_processor import InputProcessor
from vllm_ext.engine.output_processor import OutputProcessor
from vllm_ext.engine.parallel_sampling import ParentRequest
from vllm_ext.engine.prompts import ParsedPrompt, PromptType, parse_prompt
from vllm_ext.engine.request import Request, RequestStatus
from vllm_ext.engine.tokenizer import load_eos_token_ids, load_tokenizer
from vllm_ext.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher


class LLMEngine:
    """Requests may be added and aborted between any two steps.

    Args:
        dispatcher: the platform's choices for one engine.

    Raises:
        ModelError, EngineError, PluginError: something about model, workers or plugins prevents the start.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        model_config = dispatcher.vllm_config.model_config
        self.vllm_config = dispatcher.vllm_config
        self.tokenizer = load_tokenizer(Path(model_config.tokenizer))
        self._eos_token_ids = load_eos_token_ids(Path(model_config.model), model_config.hf_config)
        self.default_sampling_params = load_default_sampling_params(Path(model_config.model), model_config.hf_config)
        """What the model directory asks for; for requests without parameters."""
        self._vocab_size: int = model_config.hf_config.get("vocab_size") or self.tokenizer.get_vocab_size()
        self._aborted: list[RequestOutput] = []
        self._is_shut_down = False
        self.output_processor = OutputProcessor(self.tokenizer)
        self.engine_core = EngineCore(dispatcher)
        self.input_processor = InputProcessor(
            self.tokenizer,
            self._eos_token_ids,
            self._vocab_size,
            self.engine_core.executor.get_supported_sampling_params(),
            self.vllm_config.parallel_config.worker_cls,
        )

    def add_request(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams | None = None,
        *,
        final_only: bool = False,
    ) -> None:
        """Queue a request.

        Args:
            request_id: unique among the requests in flight.
            params: those of the model directory if omitted. With ``n`` above 1 the engine core has a request for each
                completion, and the outputs hold all of them.
            final_only: give one output when the request ends, instead of one for each step.

        Raises:
            InvalidRequest: the prompt, or a parameter, cannot be served; nothing is changed.
            EngineError: the engine is shut down.
        """
        self._check_running()
        params = copy.copy(self.default_sampling_params) if params is None else params
        params = self.input_processor.process_params(params)
        parsed = parse_prompt(prompt)
        token_ids = self._token_ids(parsed)
        if params.n > 1:
            self._add_completions(ParentRequest(request_id, parsed.text, token_ids, params), token_ids, final_only)
            return
        if self.output_processor.is_in_flight(request_id):
            raise _id_in_use(request_id)
        self.engine_core.add_request(Request(request_id, token_ids, params, self._eos_token_ids))
        self.output_processor.add_request(request_id, parsed.text, token_ids, params, final_only=final_only)

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """End requests. The next step gives their last outputs, with ``finish_reason`` ``abort``; ids that are not in
        flight are passed over.
        """
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        self.engine_core.abort_requests(child for i in ids for child in self.output_processor.child_ids(i))
        self._aborted += self.output_processor.abort_requests(ids)

    def step(self) -> list[RequestOutput]:
        """Make one step.

        Returns: for each request that went on or ended, all that it has so far.

        Raises:
            EngineError: the step failed. The requests in flight are gone, as they are after an interrupt; new ones may
                be tried.
        """
        self._check_running()
        try:
            outputs = self.engine_core.step()
            processed = self.output_processor.process_outputs(outputs)
            self.engine_core.abort_requests(processed.stopped, RequestStatus.FINISHED_STOPPED)
        except BaseException:
            self.engine_core.abort_all()
            self.output_processor.clear()
            raise
        aborted, self._aborted = self._aborted, []
        return aborted + processed.request_outputs

    def has_unfinished_requests(self) -> bool:
        """Whether :meth:`step` has something to do; the last step may be one that gives no output."""
        return bool(self._aborted) or self.engine_core.has_requests()

    def shutdown(self) -> None:
        """Stop the workers; may be called twice."""
        self._is_shut_down = True
        self.engine_core.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def _check_running(self) -> None:
        if self._is_shut_down:
            raise EngineError("this engine is shut down; make a new one")

    def _add_completions(self, parent: ParentRequest, token_ids: list[int], final_only: bool) -> None:
        """A request for each completion, or none at all."""
        for request_id in (parent.request_id, *parent.child_ids):
            if self.output_processor.is_in_flight(request_id):
                raise _id_in_use(request_id)
        for index, (child_id, params) in enumerate(parent.children()):
            # What is wrong with one is wrong with the first.
            self.engine_core.add_request(Request(child_id, token_ids, params, self._eos_token_ids))
            self.output_processor.add_request(
                child_id, None, token_ids, params, final_only=final_only, parent=parent, index=index
            )

    def _token_ids(self, prompt: ParsedPrompt) -> list[int]:
        """Token ids of the prompt, checked against the vocabulary."""
        token_ids = prompt.token_ids
        if token_ids is None:
            try:
                token_ids = self.tokenizer.encode(prompt.text, add_special_tokens=True).ids
            except TypeError as error:  # how the library answers to half of a surrogate pair
                raise InvalidRequest("the prompt's text cannot be tokenized: it is not valid Unicode") from error
            except Exception as error:  # the library raises bare Exception
                raise InvalidRequest(f"the prompt's text cannot be tokenized: {error}") from error
        if not token_ids:
            raise InvalidRequest("the prompt is empty: the engine needs at least one token to go on from")
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"token id {token_id} is outside the model's vocabulary; ids go from 0 to {self._vocab_size - 1}"
                )
        return token_ids


def _id_in_use(request_id: str) -> InvalidRequest:
    return InvalidRequest(f"a request with the id {request_id!r} is in flight; ids have to be unique")
