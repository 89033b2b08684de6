"""The older place of :mod:`vllm_ext.engine.scheduling.scheduler`, for plugins that import from it."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "Scheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_ext.engine.scheduling import scheduler

    warnings.warn(
        "vllm_ext.engine.scheduler.Scheduler is deprecated, and vllm_ext 0.3.0 will not have it; import it from "
        "vllm_ext.engine.scheduling.scheduler",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(scheduler, name)
