"""Checks of single parameters; each message names parameter, value and range."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

from vllm_ext import envs
from vllm_ext.errors import ConfigError, InvalidRequest

_MAX_N = 16384
"""vLLM's. Each completion is a request of its own, so that a slip of the keyboard would take all memory."""


def check_number(name: str, value: Any, *, low: float, high: float = math.inf, low_included: bool = True) -> None:
    """InvalidRequest unless ``value`` is a finite number in the range."""
    if not _is_finite(value) or not low <= value <= high or (value == low and not low_included):
        raise InvalidRequest(f"{name} is {value!r}; it takes a number, {_bounds(low, high, low_included)}")


def check_integer(name: str, value: Any, *, low: int, high: float = math.inf) -> None:
    """InvalidRequest unless ``value`` is an integer in the range."""
    if not _is_integer(value) or not low <= value <= high:
        raise InvalidRequest(f"{name} is {value!r}; it takes an integer, {_bounds(low, high)}")


def check_num_completions(value: Any) -> None:
    """InvalidRequest unless ``n`` is an integer from 1 to what the environment allows; ConfigError where that says
    something else than a number.
    """
    check_integer("n", value, low=1)
    if value == 1:
        return
    text = os.environ.get(envs.VLLM_MAX_N_SEQUENCES, str(_MAX_N))
    if not text.strip().isdecimal() or (limit := int(text)) < 1:
        raise ConfigError(
            f"environment variable {envs.VLLM_MAX_N_SEQUENCES} is {text!r}; it takes the most completions that a "
            f"request may ask for, an integer of at least 1 (unset: {_MAX_N})"
        )
    if value > limit:
        raise InvalidRequest(
            f"n is {value}; it takes an integer, from 1 to {limit}, which the environment variable "
            f"{envs.VLLM_MAX_N_SEQUENCES} can change"
        )


def check_bool(name: str, value: Any) -> None:
    """InvalidRequest unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; it takes true or false")


def check_unicode(name: str, texts: list[str]) -> None:
    """InvalidRequest where a text has half of a surrogate pair, which no output has and no process can be handed."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{name} holds {text!r}, which is not valid Unicode: {text[error.start]!r}") from None


def check_token_ids(name: str, value: list[int]) -> None:
    """InvalidRequest where an id is none that any vocabulary could have, since it has more than 64 bits."""
    if beyond := next((token for token in value if not -(2**63) <= token < 2**63), None):
        raise InvalidRequest(f"{name} has token id {beyond}; ids are integers of at most 64 bits")


def check_logit_bias(value: Any) -> None:
    """InvalidRequest unless ``value`` maps token ids to finite numbers."""
    fits = isinstance(value, dict) and all(_is_integer(token) and _is_finite(bias) for token, bias in value.items())
    if not fits:
        raise InvalidRequest(f"logit_bias is {value!r}; it takes a dictionary of token ids to finite numbers")


def check_extra_args(value: Any) -> None:
    """InvalidRequest unless ``value`` is a dictionary with strings as keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"extra_args is {value!r}; it takes a dictionary with strings as keys")


def as_list(name: str, value: Any, item: type, expected: str) -> list[Any]:
    """A list of different entries, in the order given; InvalidRequest where one is no ``item``."""
    if value is None:
        return []
    if _is(item, value):
        return [value]
    if not isinstance(value, list | tuple | set) or not all(_is(item, entry) for entry in value):
        raise InvalidRequest(f"{name} is {value!r}; it takes {expected}")
    return list(dict.fromkeys(value))


def _bounds(low: float, high: float, low_included: bool = True) -> str:
    if high == math.inf:
        return f"at least {low}" if low_included else f"above {low}"
    return f"from {low} to {high}" if low_included else f"above {low} and at most {high}"


def _is(kind: Any, value: Any) -> bool:
    """Whether ``value`` is of ``kind``; true and false are no numbers here."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is(int, value)


def _is_finite(value: Any) -> bool:
    return _is(int | float, value) and abs(value) <= sys.float_info.max
