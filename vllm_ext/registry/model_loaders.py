"""Model loaders by load format; the decorator that plugins use is in ``contracts/model_loader.py``."""

from __future__ import annotations

from vllm_ext.registry.classes import ClassRegistry

_SAFETENSORS = "vllm_ext.worker.loading.model_loaders:SafetensorsModelLoader"

MODEL_LOADERS = ClassRegistry(
    "load format",
    {
        "auto": _SAFETENSORS,
        "safetensors": _SAFETENSORS,
        "dummy": "vllm_ext.worker.loading.model_loaders:DummyModelLoader",
    },
)
