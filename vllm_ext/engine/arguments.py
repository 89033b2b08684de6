"""The arguments of ``LLM`` and ``AsyncLLM`` that go with prompts: from one value to one for each prompt."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import InvalidRequest


def params_for_each(
    sampling_params: SamplingParams | Sequence[SamplingParams], num_prompts: int
) -> list[SamplingParams]:
    """Sampling parameters by prompt; InvalidRequest where they are none, or too few or too many."""
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * num_prompts
    if not isinstance(sampling_params, list | tuple):
        raise InvalidRequest(
            f"sampling_params is {sampling_params!r}; it takes SamplingParams, or a list with one for each prompt"
        )
    params = list(sampling_params)
    for index, entry in enumerate(params):
        if not isinstance(entry, SamplingParams):
            raise InvalidRequest(f"sampling_params[{index}] is {entry!r}; it takes SamplingParams")
    if len(params) != num_prompts:
        raise InvalidRequest(
            f"{len(params)} sampling_params for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return params


def pooling_params_for_each(
    pooling_params: PoolingParams | Sequence[PoolingParams] | None, num_prompts: int
) -> list[PoolingParams]:
    """Pooling parameters by prompt; InvalidRequest where they are none, or too few or too many."""
    if pooling_params is None or isinstance(pooling_params, PoolingParams):
        return [PoolingParams() if pooling_params is None else pooling_params] * num_prompts
    if not isinstance(pooling_params, list | tuple) or not all(isinstance(p, PoolingParams) for p in pooling_params):
        raise InvalidRequest(
            f"pooling_params is {pooling_params!r}; it takes PoolingParams, or a list with one for each prompt"
        )
    if len(pooling_params) != num_prompts:
        raise InvalidRequest(
            f"{len(pooling_params)} pooling_params for {num_prompts} prompts; give one for all, or a list with one for "
            "each"
        )
    return list(pooling_params)


def priorities_for_each(priority: int | Sequence[int], num_prompts: int) -> list[int]:
    """Priorities by prompt; InvalidRequest where there are too few or too many."""
    if not isinstance(priority, list | tuple):
        return [priority] * num_prompts  # type: ignore[list-item] # add_request() says what it takes
    if len(priority) != num_prompts:
        raise InvalidRequest(
            f"{len(priority)} priorities for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return list(priority)
