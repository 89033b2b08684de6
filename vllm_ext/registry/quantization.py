"""Quantization methods by name; the decorator that plugins use is in ``contracts/quantization.py``."""

from __future__ import annotations

from vllm_ext.registry.classes import ClassRegistry

QUANTIZATION_METHODS = ClassRegistry("quantization method", {"int8": "vllm_ext.layers.quantization.int8:Int8Config"})
