"""What the library transformers knows about an architecture; it is imported only for one that is not registered."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

ADAPTER = "vllm_ext.models.adapter:TransformersForCausalLM"
"""The model class for every architecture that is run through transformers."""
EXTRA = "pip install 'vllm-ext[transformers]'"

_OTHER_KINDS = {
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "an encoder-decoder",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "a model that reads images",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "a model that reads speech",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "an encoder",
}


def refusal_of(arch: str) -> str | None:
    """Why :data:`ADAPTER` cannot run ``arch``, one sentence; ``None`` where it can, as far as names tell."""
    if find_spec("transformers") is None:
        return f"Most other decoder-only architectures run through the library transformers, an extra: {EXTRA}"
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for mapping, kind in _OTHER_KINDS.items():
        if arch in _names(auto, mapping):
            return f"transformers knows {arch} as {kind}; only decoder-only language models run through it"
    if arch not in _names(auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
        version = importlib.import_module("transformers").__version__
        return f"transformers {version}, which runs most others, does not know it as a decoder-only language model"
    return None


def _names(auto: Any, mapping: str) -> set[str]:
    """Class names in a table of transformers."""
    names: set[str] = set()
    for value in getattr(auto, mapping, {}).values():
        names.update([value] if isinstance(value, str) else value)
    return names
