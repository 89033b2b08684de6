"""What a model is for, generating or pooling, as far as its name, its files and the settings tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vllm_ext.config.schema import EngineSettings
from vllm_ext.contracts.pooling_params import ConvertType, RunnerType
from vllm_ext.errors import ConfigError

_ENDINGS: tuple[tuple[str, ConvertType], ...] = (
    ("ForSequenceClassification", "classify"),
    ("ForTokenClassification", "classify"),
    ("ForTextEncoding", "embed"),
    ("EmbeddingModel", "embed"),
    ("ForMaskedLM", "embed"),
    ("Model", "embed"),
)
"""Ends of names in ``architectures`` of models that pool, as in vLLM; all others generate."""


class Purpose(NamedTuple):
    """``convert_type`` is ``none`` where the runner is ``generate``."""

    runner_type: RunnerType
    convert_type: ConvertType


def resolve_purpose(engine: EngineSettings, architectures: Sequence[str], *, has_modules: bool) -> Purpose:
    """What the settings say, and for the rest what the model's files are made for.

    Args:
        has_modules: whether the directory has the files of sentence-transformers, which make any model one that embeds.

    Raises:
        ConfigError: the settings want to convert a model that is to generate.
    """
    own = "embed" if has_modules else next((kind for kind in map(_kind_of, architectures) if kind), None)
    runner: RunnerType
    if engine.runner != "auto":
        runner = engine.runner
    elif engine.convert in ("embed", "classify"):
        runner = "pooling"
    else:
        runner = "pooling" if own else "generate"
    if runner == "generate":
        if engine.convert in ("embed", "classify"):
            raise ConfigError(
                f"engine.convert is {engine.convert!r}, which is for models that pool, and engine.runner is "
                "'generate'; set engine.runner to 'pooling', or engine.convert to 'none'"
            )
        return Purpose("generate", "none")
    if engine.convert == "auto":
        return Purpose("pooling", own or "embed")
    return Purpose("pooling", engine.convert)


def _kind_of(arch: str) -> ConvertType | None:
    if arch.endswith("LMHeadModel"):
        return None
    return next((kind for ending, kind in _ENDINGS if arch.endswith(ending)), None)
