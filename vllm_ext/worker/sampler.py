"""The older place of :mod:`vllm_ext.worker.sampling.sampler`, for plugins that import from it."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("Sampler", "SamplerOutput"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_ext.worker.sampling import sampler

    warnings.warn(
        f"vllm_ext.worker.sampler.{name} is deprecated, and vllm_ext 0.3.0 will not have it; import it from "
        "vllm_ext.worker.sampling.sampler",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(sampler, name)
