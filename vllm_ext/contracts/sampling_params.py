"""How the tokens of one request are chosen."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec

from vllm_ext.errors import InvalidRequest

_GREEDY_BELOW = 1e-5


class SamplingParams(msgspec.Struct, kw_only=True):
    """Sampling parameters with vLLM's names and defaults.

    Args:
        temperature: 0 is greedy; larger is more random. Defaults to 1.0, as in vLLM.
        max_tokens: number of tokens to generate at most; ``None`` is limited only by ``max_model_len``.
        seed: makes the request's tokens a function of prompt, parameters and seed alone.
        stop: a string or strings that end generation; the text returned ends before them.
        stop_token_ids: token ids that end generation; the token itself is kept in ``token_ids``.
        ignore_eos: go on after the model's end-of-sequence token.

    Raises:
        InvalidRequest: a value is out of range; the text names parameter, value and range.
    """

    temperature: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, low=0.0, kinds=(int, float))
        if self.max_tokens is not None:
            _check_number("max_tokens", self.max_tokens, low=1, kinds=(int,))
        if self.seed is not None:
            _check_number("seed", self.seed, low=-(2**63), high=2**64 - 1, kinds=(int,))
        self.stop = _as_list("stop", self.stop, str, "a string or a list of strings")
        if any(not text for text in self.stop):
            raise InvalidRequest("stop holds an empty string; every stop string needs at least one character")
        self.stop_token_ids = _as_list("stop_token_ids", self.stop_token_ids, int, "a list of token ids")
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos is {self.ignore_eos!r}; it takes true or false")

    @property
    def is_greedy(self) -> bool:
        """True where the most likely token is taken and no random number is drawn."""
        return self.temperature < _GREEDY_BELOW


def _check_number(name: str, value: Any, *, low: float, high: float = math.inf, kinds: tuple[type, ...]) -> None:
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or value > sys.float_info.max:
        kind = "an integer" if kinds == (int,) else "a number"
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InvalidRequest(f"{name} is {value!r}; it takes {kind}, {bounds}")


def _as_list(name: str, value: Any, item: type, expected: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, item) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list | tuple | set) or not all(
        isinstance(entry, item) and not isinstance(entry, bool) for entry in value
    ):
        raise InvalidRequest(f"{name} is {value!r}; it takes {expected}")
    return list(value)
