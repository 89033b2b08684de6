"""The scheduler of an engine: its own, or a class that the settings or the platform name."""

from __future__ import annotations

from typing import Any

from vllm_ext.contracts.call_check import check_constructor
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.contracts.scheduler import CONSTRUCTOR_KEYWORDS, missing_methods
from vllm_ext.errors import ContractError, EngineError, VllmExtError, dotted_path, innermost_cause

OWN_SCHEDULER = "vllm_ext.engine.scheduling.scheduler.Scheduler"
"""What ``auto`` stands for."""


def resolve_scheduler(wanted: str | type, source: str) -> type:
    """The class, checked before anything is built.

    Args:
        wanted: a class path, a class, or ``auto``; ``source`` says who named it.

    Raises:
        ContractError: it cannot be imported, lacks methods that the engine calls (the text has all of them), or cannot
            be built with vLLM's keywords.
    """
    qualname = OWN_SCHEDULER if wanted == "auto" else wanted
    cls: type = (
        qualname if isinstance(qualname, type) else resolve_class(qualname, object, slot="scheduler", source=source)
    )
    if missing := missing_methods(cls):
        raise ContractError(
            f"scheduler class of {source}: {dotted_path(cls)} does not implement: {', '.join(missing)}. The engine "
            f"calls these methods of every scheduler; {OWN_SCHEDULER} has them"
        )
    check_constructor(cls, CONSTRUCTOR_KEYWORDS, slot="scheduler", source=source)
    return cls


def build_scheduler(cls: type, source: str, keywords: dict[str, Any]) -> Any:
    """An instance; EngineError, with who named the class, where its constructor fails."""
    try:
        return cls(**keywords)
    except (VllmExtError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise EngineError(
            f"scheduler {dotted_path(cls)} of {source} cannot be built: {innermost_cause(error)}"
        ) from error
