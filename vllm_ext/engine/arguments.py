"""The arguments of ``LLM`` and ``AsyncLLM`` that go with prompts: from one value to one for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import InvalidRequest

P = TypeVar("P", SamplingParams, PoolingParams)


def params_for_each(name: str, cls: type[P], params: P | Sequence[P], num_prompts: int) -> list[P]:
    """Parameters by prompt; InvalidRequest where they are none, or too few or too many.

    Args:
        name: of the argument, for messages.
    """
    if isinstance(params, cls):
        return [params] * num_prompts
    if not isinstance(params, list | tuple):
        raise InvalidRequest(f"{name} is {params!r}; it takes {cls.__name__}, or a list with one for each prompt")
    each: list[P] = list(params)
    for index, entry in enumerate(each):
        if not isinstance(entry, cls):
            raise InvalidRequest(f"{name}[{index}] is {entry!r}; it takes {cls.__name__}")
    if len(each) != num_prompts:
        raise InvalidRequest(
            f"{len(each)} {name} for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return each


def priorities_for_each(priority: int | Sequence[int], num_prompts: int) -> list[int]:
    """Priorities by prompt; InvalidRequest where there are too few or too many."""
    if not isinstance(priority, list | tuple):
        return [priority] * num_prompts  # type: ignore[list-item] # add_request() says what it takes
    if len(priority) != num_prompts:
        raise InvalidRequest(
            f"{len(priority)} priorities for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return list(priority)
