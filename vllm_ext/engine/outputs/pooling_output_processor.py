"""From the results of a pooling model to what the user gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from vllm_ext.contracts.pooling_outputs import PoolingOutput, PoolingRequestOutput
from vllm_ext.contracts.tokenizer import TokenizerLike
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.outputs.output_processor import OutputProcessor, ProcessedOutputs
from vllm_ext.engine.scheduling.request import EngineCoreOutput, PooledResult


class PoolingOutputProcessor:
    """As :class:`~vllm_ext.engine.outputs.output_processor.OutputProcessor`, for requests that have one output: their
    last.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, list[int]] = {}
        """Token ids by request."""

    def add_completions(
        self, prompt: str | None, requests: Sequence[EngineCoreRequest], parent: Any, *, final_only: bool = False
    ) -> None:
        """Expect the results of ``requests``; each stands for itself."""
        for request in requests:
            self._prompts[request.request_id] = request.prompt_token_ids

    def child_ids(self, request_id: str) -> list[str]:
        """Ids that the engine core knows the request by."""
        return [request_id]

    def parent_ids(self, child_ids: Iterable[str]) -> list[str]:
        """The other way round, of those in flight."""
        return [request_id for request_id in child_ids if request_id in self._prompts]

    def request_ids(self) -> list[str]:
        """Of all requests in flight."""
        return list(self._prompts)

    def is_in_flight(self, request_id: str) -> bool:
        return request_id in self._prompts

    def process_outputs(self, outputs: Iterable[EngineCoreOutput]) -> ProcessedOutputs:
        """The results of one step."""
        finished: list[Any] = []
        for output in outputs:
            token_ids = self._prompts.pop(output.request_id, None)
            # One that is not known was aborted while the core was still at it.
            if token_ids is not None and output.pooled is not None:
                pooled = PoolingOutput(_as_tensor(output.pooled))
                finished.append(PoolingRequestOutput(output.request_id, pooled, token_ids, output.num_cached_tokens))
        return ProcessedOutputs(finished, [])

    def abort_requests(self, request_ids: Iterable[str]) -> list[Any]:
        """End requests from outside; returns their last outputs, without numbers. Unknown ids are passed over."""
        known = [(request_id, self._prompts.pop(request_id, None)) for request_id in request_ids]
        return [_nothing_pooled(request_id, token_ids) for request_id, token_ids in known if token_ids is not None]

    def aborted_output(self, request_id: str) -> Any:
        """The last output of a request that was aborted before anything was known about it."""
        return _nothing_pooled(request_id, [])

    def clear(self) -> None:
        """Forget all requests."""
        self._prompts.clear()


def make_output_processor(
    model_config: ModelConfig, tokenizer: TokenizerLike
) -> OutputProcessor | PoolingOutputProcessor:
    """The one for what the engine is for."""
    return PoolingOutputProcessor() if model_config.runner_type == "pooling" else OutputProcessor(tokenizer)


def _nothing_pooled(request_id: str, prompt_token_ids: list[int]) -> PoolingRequestOutput[PoolingOutput]:
    """The last output of a request that was aborted."""
    return PoolingRequestOutput(request_id, PoolingOutput(torch.empty(0, device="cpu")), prompt_token_ids)


def _as_tensor(pooled: PooledResult) -> torch.Tensor:
    if not pooled.data:
        return torch.empty(pooled.shape, device="cpu")
    return torch.frombuffer(bytearray(pooled.data), dtype=torch.float32).view(pooled.shape)
