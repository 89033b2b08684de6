"""The arguments of ``LLM`` and ``AsyncLLM``: those that go with prompts, from one value to one for each prompt, and
those of calls between two steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vllm_ext.contracts.parameter_checks import check_integer, check_number
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.inputs.prompts import list_advice
from vllm_ext.errors import InvalidRequest

F = TypeVar("F")
P = TypeVar("P", SamplingParams, PoolingParams)


def params_for_each(name: str, cls: type[P], params: P | Sequence[P], num_prompts: int) -> list[P]:
    """Parameters by prompt; InvalidRequest where they are none, or too few or too many.

    Args:
        name: of the argument, for messages.
    """
    if isinstance(params, cls):
        return [params] * num_prompts
    if not isinstance(params, list | tuple):
        raise InvalidRequest(
            f"{name} is {params!r}; it takes {cls.__name__}, or a list with one for each prompt"
            f"{list_advice(name, params)}"
        )
    each: list[P] = list(params)
    for index, entry in enumerate(each):
        if not isinstance(entry, cls):
            raise InvalidRequest(f"{name}[{index}] is {entry!r}; it takes {cls.__name__}")
    if len(each) != num_prompts:
        raise InvalidRequest(
            f"{len(each)} {name} for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return each


def priorities_for_each(priority: int | Sequence[int] | None, num_prompts: int) -> list[int]:
    """Priorities by prompt; ``None`` is 0, for all; InvalidRequest where there are too few or too many."""
    if priority is None:
        return [0] * num_prompts
    if not isinstance(priority, list | tuple):
        return [priority] * num_prompts  # type: ignore[list-item] # add_request() says what it takes
    if len(priority) != num_prompts:
        raise InvalidRequest(
            f"{len(priority)} priorities for {num_prompts} prompts; give one for all, or a list with one for each"
        )
    return list(priority)


def check_request_id(request_id: object) -> None:
    """InvalidRequest where this is no id for a request."""
    if not isinstance(request_id, str):
        raise InvalidRequest(f"request_id is {request_id!r}; it takes a text")


def refuse_adapter(lora_request: object) -> None:
    """InvalidRequest for any ``lora_request`` but ``None``, which programs for vLLM pass on."""
    if lora_request is not None:
        raise InvalidRequest(
            f"lora_request is {lora_request!r}; it takes None alone, since the engine applies no adapters; merge one "
            "into the weights"
        )


def ids_of(request_id: str | Iterable[str]) -> list[str]:
    """The request ids that one or several are; InvalidRequest where they are no texts."""
    if isinstance(request_id, str):
        return [request_id]
    ids: list[Any] = list(request_id) if isinstance(request_id, Iterable) else [request_id]
    for each in ids:
        if not isinstance(each, str):
            raise InvalidRequest(f"request_id is {request_id!r}; it takes the id of a request, a text, or several ids")
    return ids


def check_call(method: object, timeout: object, args: object, kwargs: object) -> None:
    """InvalidRequest where these are no arguments of ``collective_rpc()``."""
    if not isinstance(method, str) and not callable(method):
        raise InvalidRequest(
            f"method is {method!r}; it takes the name of a method of the worker, or a function that is called with it"
        )
    if timeout is not None:
        check_number("timeout", timeout, low=0)
    if not isinstance(args, list | tuple):
        raise InvalidRequest(f"args is {args!r}; it takes a tuple with the arguments of the method")
    is_named = isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)
    if kwargs is not None and not is_named:
        raise InvalidRequest(f"kwargs is {kwargs!r}; it takes a dictionary with the arguments of the method by name")


def check_function(func: F) -> F:
    """The argument of ``apply_model()``; InvalidRequest where it is none."""
    if not callable(func):
        raise InvalidRequest(f"func is {func!r}; it takes a function that is called with the model of each worker")
    return func


def check_sleep(level: object, mode: object, modes: Sequence[str]) -> int:
    """The level; InvalidRequest where these are no arguments of ``sleep()``."""
    number = check_integer("level", level, low=0, high=2)
    if mode not in modes:
        hint = "; others than 'abort' are for AsyncLLM" if len(modes) == 1 else ""
        raise InvalidRequest(f"mode is {mode!r}; it takes {' or '.join(map(repr, modes))}{hint}")
    return number


def check_tags(tags: object) -> None:
    """InvalidRequest where these are no tags of ``wake_up()``."""
    is_list = isinstance(tags, list | tuple) and all(isinstance(tag, str) for tag in tags)
    if tags is not None and not is_list:
        raise InvalidRequest(f"tags is {tags!r}; it takes a list of names, or None for all that sleeps")
