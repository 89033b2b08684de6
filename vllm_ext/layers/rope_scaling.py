"""Inverse frequencies of rotary embeddings, for contexts longer than a model was trained on.

Each kind is a function from the plain frequencies and the model's ``rope_parameters`` to the frequencies to use. Where
they come from: ``linear`` position interpolation (arXiv 2306.15595), ``dynamic`` the NTK-aware base of the same
discussion, ``yarn`` arXiv 2309.00071, ``llama3`` the reference code of Llama 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.errors import CheckpointError, UnsupportedModel, listing

_TRAINED_LENGTH = 2048
"""Positions of a model whose configuration does not say (transformers' default for Llama)."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation as a model's configuration describes it.

    Args:
        source: the file it was read from, for messages.
        parameters: ``rope_parameters``, or what older files call ``rope_scaling``.
        theta: base of the geometric row of wavelengths.
        size: numbers of a head that are rotated.
        trained_length: ``max_position_embeddings``.
        max_length: tokens of the longest sequence that the engine serves.
    """

    source: str
    parameters: dict[str, Any]
    theta: float
    size: int
    trained_length: int
    max_length: int

    @classmethod
    def read(cls, config: HFConfig, head_size: int, max_length: int) -> Rope:
        """From ``config.json``, old style (``rope_theta``, ``rope_scaling``) or new (``rope_parameters``).

        Raises:
            CheckpointError: a parameter is no number above 0.
            UnsupportedModel: only a part of each head is rotated.
        """
        source, parameters = str(config.source or "config.json"), config.rope_parameters
        theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
        if not _is_positive(theta):
            raise CheckpointError(f"{source}: rope_theta is {theta!r}; it takes a number above 0")
        part = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if part != 1:
            raise UnsupportedModel(f"{source}: partial_rotary_factor is {part!r}, and heads are rotated whole")
        trained_length = config.positive_int("max_position_embeddings", _TRAINED_LENGTH)
        return cls(source, parameters, theta, head_size, trained_length, max_length)

    @property
    def kind(self) -> str:
        """``rope_type``, which older files call ``type``."""
        return str(self.parameters.get("rope_type", self.parameters.get("type", "default")))

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """Angle by position, float32 ``[size / 2]``, and a factor on cosine and sine.

        Raises:
            UnsupportedModel: a kind that is not known.
            CheckpointError: a parameter of the kind is missing or no number above 0.
        """
        if self.kind not in _KINDS:
            raise UnsupportedModel(
                f"{self.source}: rope type {self.kind!r} is not supported; supported: {listing(_KINDS)}"
            )
        return _KINDS[self.kind](self)

    def plain(self, theta: float | None = None) -> torch.Tensor:
        """``theta ** (-2 i / size)``, float32 ``[size / 2]``."""
        exponents = torch.arange(0, self.size, 2, dtype=torch.float32) / self.size
        return 1.0 / ((self.theta if theta is None else theta) ** exponents)

    def number(self, key: str, default: float | None = None) -> float:
        """The parameter ``key``, a number above 0."""
        value = self.parameters.get(key)
        value = default if value is None else value
        if not _is_positive(value):
            given = "missing" if value is None else repr(value)
            raise CheckpointError(f"{self.source}: {key} of the {self.kind} rope is {given}; it takes a number above 0")
        return float(value)  # type: ignore[arg-type]


def _default(rope: Rope) -> tuple[torch.Tensor, float]:
    return rope.plain(), 1.0


def _linear(rope: Rope) -> tuple[torch.Tensor, float]:
    """All positions are pressed into the trained length."""
    return rope.plain() / rope.number("factor"), 1.0


def _dynamic(rope: Rope) -> tuple[torch.Tensor, float]:
    """A base that grows with the sequence's length, here with the longest that is served.

    A base that changed while a sequence grows would not fit the keys in the cache, and one of a request's own length
    would make its tokens depend on chunks.
    """
    factor, length = rope.number("factor"), max(rope.max_length, rope.trained_length)
    stretched = factor * length / rope.trained_length - (factor - 1)
    return rope.plain(rope.theta * stretched ** (rope.size / (rope.size - 2))), 1.0


def _llama3(rope: Rope) -> tuple[torch.Tensor, float]:
    """Slow angles are divided by ``factor``, fast ones kept, those between interpolated."""
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    factor, length = rope.number("factor"), rope.number("original_max_position_embeddings", rope.trained_length)
    plain = rope.plain()
    keep = ((length * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / factor, 1.0


def _yarn(rope: Rope) -> tuple[torch.Tensor, float]:
    """Angles that turn often within the trained length are kept, slow ones divided, and the logits made sharper."""
    length = rope.number("original_max_position_embeddings", rope.trained_length)
    factor = rope.number("factor", rope.trained_length / length)

    def dimension(turns: float) -> float:
        """The dimension whose angle makes so many turns within the trained length."""
        return rope.size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = dimension(rope.number("beta_fast", 32)), dimension(rope.number("beta_slow", 1))
    if rope.parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.size - 1)
    ramp = (torch.arange(rope.size // 2, dtype=torch.float32) - first) / max(last - first, 1e-3)
    divided = ramp.clamp(0, 1)
    plain = rope.plain()
    return plain / factor * divided + plain * (1 - divided), _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Rope, factor: float) -> float:
    """The paper's ``0.1 ln(factor) + 1``, unless the model has its own."""

    def sharper(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if rope.parameters.get("attention_factor") is not None:
        return rope.number("attention_factor")
    if rope.parameters.get("mscale") and rope.parameters.get("mscale_all_dim"):
        return sharper(rope.number("mscale")) / sharper(rope.number("mscale_all_dim"))
    return sharper(1)


_KINDS: dict[str, Callable[[Rope], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
