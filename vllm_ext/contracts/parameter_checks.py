"""Checks of single parameters; each message names parameter, value and range.

They return the value as one of Python's own types, since numbers and texts of other libraries, such as numpy's, cannot
pass to another process.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Mapping
from enum import Enum
from numbers import Integral, Real
from typing import Any, ClassVar

import msgspec

from vllm_ext import envs
from vllm_ext.errors import ConfigError, InvalidRequest, did_you_mean, listing

_MAX_N = 16384
"""vLLM's. Each completion is a request of its own, so that a slip of the keyboard would take all memory."""


class ParamsMeta(msgspec.StructMeta):
    """Of parameters of a request: a keyword that they do not have is a TypeError with those that they have; and one
    that vLLM alone has may stand at its default, which is a class variable.
    """

    _fixed: ClassVar[Mapping[str, str]] = {}
    """Of those that vLLM alone has, by name: why they have no other value here."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        known = cls.__struct_fields__
        for name in [*kwargs]:
            if name in cls._fixed:
                if (value := kwargs.pop(name)) is not (default := getattr(cls, name)):
                    raise InvalidRequest(f"{name} is {value!r}; it takes {default!r} alone: {cls._fixed[name]}")
            elif name not in known:
                public = [field for field in known if not field.startswith("_")]
                raise TypeError(
                    f"{cls.__name__} has no parameter {name!r}{did_you_mean(name, public)}; its parameters: "
                    f"{listing(public)}"
                )
        return super().__call__(*args, **kwargs)


def check_number(
    name: str, value: Any, *, low: float, high: float = math.inf, low_included: bool = True
) -> int | float:
    """``value``; InvalidRequest unless it is a finite number in the range."""
    number = _as_finite(value)
    if number is None or not low <= number <= high or (number == low and not low_included):
        raise InvalidRequest(f"{name} is {value!r}; it takes a number, {_bounds(low, high, low_included)}")
    return number


def check_integer(name: str, value: Any, *, low: int, high: float = math.inf) -> int:
    """``value``; InvalidRequest unless it is an integer in the range."""
    integer = as_integer(value)
    if integer is None or not low <= integer <= high:
        raise InvalidRequest(f"{name} is {value!r}; it takes an integer, {_bounds(low, high)}")
    return integer


def check_num_completions(value: Any) -> int:
    """``value``; InvalidRequest unless ``n`` is an integer from 1 to what the environment allows; ConfigError where
    that says something else than a number.
    """
    num_completions = check_integer("n", value, low=1)
    if num_completions == 1:
        return num_completions
    text = os.environ.get(envs.VLLM_MAX_N_SEQUENCES, str(_MAX_N))
    if not text.strip().isdecimal() or (limit := int(text)) < 1:
        raise ConfigError(
            f"environment variable {envs.VLLM_MAX_N_SEQUENCES} is {text!r}; it takes the most completions that a "
            f"request may ask for, an integer of at least 1 (unset: {_MAX_N})"
        )
    if num_completions > limit:
        raise InvalidRequest(
            f"n is {value}; it takes an integer, from 1 to {limit}, which the environment variable "
            f"{envs.VLLM_MAX_N_SEQUENCES} can change"
        )
    return num_completions


def check_bool(name: str, value: Any) -> bool:
    """``value``; InvalidRequest unless it is true or false."""
    if isinstance(value, bool):
        return value
    # Whoever has one of numpy's has imported numpy, which need not be known here.
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.bool_):
        raise InvalidRequest(f"{name} is {value!r}; it takes true or false")
    return bool(value)


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


def check_member(name: str, value: Any, kind: type[Enum]) -> None:
    """InvalidRequest unless ``value`` is a member of ``kind``."""
    if not isinstance(value, kind):
        members = listing(f"{kind.__name__}.{member.name}" for member in kind)
        raise InvalidRequest(f"{name} is {value!r}; it takes one of: {members}")


def check_logit_bias(value: Any) -> dict[int, float]:
    """A copy of ``value``; InvalidRequest unless it maps token ids to finite numbers."""
    checked: dict[int, float] = {}
    for token, bias in value.items() if isinstance(value, dict) else [(None, None)]:
        token_id, number = as_integer(token), _as_finite(bias)
        if token_id is None or number is None:
            culprit = f"the key {token!r} is no integer" if token_id is None else f"that of {token_id} is {bias!r}"
            raise InvalidRequest(
                f"logit_bias is {value!r}; it takes a dictionary of token ids to finite numbers"
                f"{f', and {culprit}' if isinstance(value, dict) else ''}"
            )
        # An integer may have more digits than processes can hand to each other.
        checked[token_id] = float(number)
    return checked


def check_extra_args(value: Any) -> None:
    """InvalidRequest unless ``value`` is a dictionary with strings as keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(f"extra_args is {value!r}; it takes a dictionary with strings as keys")


def as_list(name: str, value: Any, item: type[int] | type[str], expected: str) -> list[Any]:
    """A list of different entries, in the order given; InvalidRequest where one is no ``item``."""
    if value is None or (isinstance(value, list) and not value):
        return []
    convert = as_integer if item is int else _as_text
    given = without_array(value)
    is_collection = isinstance(given, Collection) and not isinstance(given, str | bytes | Mapping)
    entries = [convert(entry) for entry in (given if is_collection else [given])]
    if None in entries:
        raise InvalidRequest(f"{name} is {value!r}; it takes {expected}")
    return list(dict.fromkeys(entries))


def as_integer(value: Any) -> int | None:
    """``value``, if it is an integer of any type; true and false are none."""
    if type(value) is int:
        return value
    is_other_integer = not isinstance(value, bool) and isinstance(value, Integral)
    return int(value) if is_other_integer else None


def without_array(value: Any) -> Any:
    """A list in place of an array or a tensor, of which neither numpy nor torch has to be known here; of one without
    dimensions its number or text.
    """
    is_array = not isinstance(value, str | list) and hasattr(value, "__array__") and hasattr(value, "tolist")
    return value.tolist() if is_array else value


def _as_finite(value: Any) -> int | float | None:
    if type(value) is float:
        number: int | float | None = value
    elif (number := as_integer(value)) is None and not isinstance(value, bool) and isinstance(value, Real):
        number = float(value)
    # An integer may be larger than any float.
    return number if number is not None and abs(number) <= sys.float_info.max else None


def _as_text(value: Any) -> str | None:
    return str(value) if isinstance(value, str) else None


def _bounds(low: float, high: float, low_included: bool = True) -> str:
    if high == math.inf:
        return f"at least {low}" if low_included else f"above {low}"
    return f"from {low} to {high}" if low_included else f"above {low} and at most {high}"
