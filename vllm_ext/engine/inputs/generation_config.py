"""How a model wants to be sampled: ``generation_config.json``, read as by vLLM's ``--generation-config auto``."""

from __future__ import annotations

from pathlib import Path

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.vllm_config import HFConfig
from vllm_ext.dispatch.hf_config import read_json_object
from vllm_ext.engine.inputs.tokenizer import GENERATION_CONFIG_FILE
from vllm_ext.errors import CheckpointError, InvalidRequest

_FIELDS = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}
"""transformers' names, and the fields of :class:`SamplingParams`; ``do_sample`` is passed over, as it is by vLLM."""


def load_default_sampling_params(directory: Path, hf_config: HFConfig) -> SamplingParams:
    """Sampling parameters for requests that have none: those of ``generation_config.json``, or, where there is no such
    file, of ``config.json``, which older models have them in. What is absent or null keeps its own default.

    Raises:
        CheckpointError: a file is damaged, or a value out of range.
    """
    path = directory / GENERATION_CONFIG_FILE
    values, source = (read_json_object(path), path) if path.is_file() else (hf_config.to_dict(), hf_config.source)
    given = {field: values[name] for name, field in _FIELDS.items() if values.get(name) is not None}
    try:
        return SamplingParams(**given)
    except InvalidRequest as error:
        raise CheckpointError(f"{source}: {error}") from error
