"""Pairs of texts as one prompt, for models that read both at once."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm_ext.contracts.pooling_params import SECOND_TEXT, PoolingParams
from vllm_ext.contracts.vllm_config import ModelConfig
from vllm_ext.engine.core.messages import Capabilities
from vllm_ext.engine.inputs.input_processor import InputProcessor
from vllm_ext.engine.inputs.pooling_params_processor import has_token_types
from vllm_ext.engine.inputs.tokenizer import tokenizing
from vllm_ext.errors import InvalidRequest
from vllm_ext.layers.pooler.heads import num_labels


def is_cross_encoder(model_config: ModelConfig, capabilities: Capabilities) -> bool:
    """Whether the model gives one score for two texts that it reads together.

    Raises:
        InvalidRequest: it gives no scores of pairs, nor embeddings to compare.
    """
    if "classify" in capabilities.tasks:
        if (labels := num_labels(model_config.hf_config)) != 1:
            raise InvalidRequest(
                f"model {model_config.model!r} tells {labels} classes apart; score() takes a model with one class, or "
                "one for embeddings"
            )
        return True
    if "embed" not in capabilities.tasks:
        raise InvalidRequest(
            f"model {model_config.model!r} neither scores pairs of texts nor embeds texts; set engine.runner to "
            "'pooling'"
        )
    return False


def pair_prompts(
    input_processor: InputProcessor, model_config: ModelConfig, pairs: list[tuple[str, str]], params: PoolingParams
) -> tuple[list[Any], list[PoolingParams]]:
    """A prompt for each pair, and its parameters.

    Raises:
        InvalidRequest: the tokenizer cannot put two texts together, or they do not fit.
    """
    encode_pair = getattr(input_processor.tokenizer, "encode_pair", None)
    if encode_pair is None:
        raise InvalidRequest(
            f"tokenizer {type(input_processor.tokenizer).__qualname__} has no encode_pair(text, text_pair, "
            "max_length), which pairs of texts need"
        )
    limit = input_processor.token_limit(params)
    has_kinds = has_token_types(model_config.hf_config)
    prompts, each = [], []
    for text, text_pair in pairs:
        with tokenizing():
            token_ids, kinds = encode_pair(text, text_pair, limit)
        prompts.append({"prompt_token_ids": token_ids})
        begins = {SECOND_TEXT: kinds.index(1)} if has_kinds and 1 in kinds else {}
        each.append(msgspec.structs.replace(params, extra_kwargs={**(params.extra_kwargs or {}), **begins} or None))
    return prompts, each
