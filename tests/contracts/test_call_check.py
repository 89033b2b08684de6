"""Whether what a plugin brings can be called as the engine calls it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from vllm_ext.contracts.call_check import takes_keyword


def with_it(x, further=None): ...


def without_it(x): ...


def with_any(x, **others): ...


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def decorated(*args, **kwargs):
        return function(*args, **kwargs)

    return decorated


def narrowed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def decorated(x):
        return function(x)

    return decorated


@pytest.mark.parametrize(
    ("method", "takes_it"),
    [
        (with_it, True),
        (without_it, False),
        (with_any, True),
        (passing_on(with_it), True),
        (passing_on(without_it), False),
        (narrowed(with_it), False),
        (narrowed(with_any), False),
        (type, False),
    ],
)
def test_a_keyword_is_given_only_to_what_takes_it(method, takes_it):
    assert takes_keyword(method, "further") == takes_it
    if takes_it:
        method(1, further=2)
