"""Which methods a worker's class lacks, found before any of it is called."""

from __future__ import annotations

import difflib
import inspect

from vllm_ext.contracts.worker import WorkerBase

REQUIRED_METHODS = (
    "init_device",
    "load_model",
    "get_kv_cache_spec",
    "determine_available_memory",
    "initialize_from_config",
    "execute_model",
)
"""What every worker implements itself. ``sample_tokens`` depends on what ``execute_model`` returns; ``get_model`` and
``profile`` are only needed by who asks for them."""
SLEEP_METHODS = ("sleep", "wake_up")
"""What it implements besides where the settings want sleep mode."""


def missing_methods(worker_cls: type[WorkerBase], *, with_sleep: bool = False) -> list[str]:
    """Methods that the engine calls, and that the class leaves as they are in :class:`WorkerBase`, where they raise.

    ``with_sleep`` adds those of sleep mode.
    """
    required = (*REQUIRED_METHODS, *SLEEP_METHODS) if with_sleep else REQUIRED_METHODS
    missing = [name for name in required if _is_inherited(worker_cls, name)]
    if "get_kv_cache_spec" in missing and not _is_inherited(worker_cls, "get_kv_cache_spaces"):
        missing.remove("get_kv_cache_spec")
    return missing


def may_lack_sample_tokens(worker_cls: type[WorkerBase]) -> bool:
    """Whether it does not implement ``sample_tokens``, and its ``execute_model`` is annotated to return ``None``, which
    announces that one. It may never do so: the annotation is often copied from the contract.
    """
    if not _is_inherited(worker_cls, "sample_tokens") or _is_inherited(worker_cls, "execute_model"):
        return False
    annotation = inspect.signature(worker_cls.execute_model).return_annotation
    return annotation is None or "None" in str(annotation)


def describe_missing(worker_cls: type[WorkerBase], missing: list[str]) -> str:
    """The names, each with the method of the class that may be a misspelling of it."""
    own = [name for name in dir(worker_cls) if not name.startswith("_") and not hasattr(WorkerBase, name)]
    close = {name: difflib.get_close_matches(name, own, n=1, cutoff=0.85) for name in missing}
    return ", ".join(name + (f" (it has {close[name][0]!r})" if close[name] else "") for name in missing)


def _is_inherited(worker_cls: type[WorkerBase], name: str) -> bool:
    return getattr(worker_cls, name) is getattr(WorkerBase, name)
