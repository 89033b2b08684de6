"""A step's token ids as a worker returned them: integers of any library are taken, anything else is refused.

A worker may keep its tokens in tensors or arrays. Their elements are neither equal to the ids of stop tokens as a set
finds them, nor can they pass to another process; so they become plain integers where they enter the engine.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import EngineError, one_line


class SampledTokens:
    """Reads ``sampled_token_ids`` of an engine's worker, where it is not what the scheduler finds plain at a glance."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._worker_cls = vllm_config.parallel_config.worker_cls
        self._is_pooling = vllm_config.model_config.runner_type == "pooling"
        self.vocab_size: int = vllm_config.model_config.hf_config.get("vocab_size") or sys.maxsize

    def rows(self, sampled: Any) -> Sequence[Any]:
        """The rows of ``sampled_token_ids``, one for each request; EngineError where it has none. A model that pools is
        not asked for any.
        """
        if isinstance(sampled, list | tuple) or self._is_pooling:
            return sampled
        rows = _as_python(sampled)
        if not isinstance(rows, list):
            raise EngineError(
                f"worker {self._worker_cls} returned {one_line(repr(sampled))} as sampled_token_ids; it has to be a "
                "list with a list of token ids for each request"
            )
        return rows

    def token_ids(self, row: Any, request_id: str) -> list[int]:
        """The new tokens of one request as plain integers; EngineError where one is no token id of the model."""
        items = row if isinstance(row, list | tuple) else _as_python(row)
        if not isinstance(items, list | tuple):
            raise self._error(f"{one_line(repr(row))} as the new tokens", request_id)
        return [self._token_id(item, request_id) for item in items]

    def _token_id(self, item: Any, request_id: str) -> int:
        value = _as_python(item)
        try:
            # operator.index() alone leaves a subclass of int what it is.
            token_id = int(operator.index(value))
        except TypeError:
            token_id = -1
        if isinstance(value, bool) or not 0 <= token_id < self.vocab_size:
            raise self._error(f"the token {one_line(repr(item))}", request_id)
        return token_id

    def _error(self, returned: str, request_id: str) -> EngineError:
        ids = "" if self.vocab_size == sys.maxsize else f" to {self.vocab_size - 1}, the model's vocabulary"
        return EngineError(
            f"worker {self._worker_cls} returned {returned} for request {request_id!r}; sampled_token_ids has to hold "
            f"a list of token ids for each request, integers from 0{ids}"
        )


def _as_python(value: Any) -> Any:
    """Of a tensor or an array the numbers in it; anything else as it is."""
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else value
