"""Calls of a worker's methods, as both executors make them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.contracts.worker_check import describe_missing, may_lack_sample_tokens, missing_methods
from vllm_ext.errors import ContractError, did_you_mean, dotted_path

logger = logging.getLogger(__name__)

_CALL_CODE = ("apply_model",)
"""Methods of every worker that call what they are given, with the model."""


def call_worker(
    worker: WorkerBase,
    method: str | Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    platform_name: str,
) -> Any:
    """Call a method by its name, or a function that takes the worker first.

    Raises:
        ContractError: the worker has no such method. What it raises comes through.
    """
    if not isinstance(method, str):
        call: Callable[..., Any] = partial(method, worker)
    else:
        call = _method_of(worker, method, platform_name)
        if hasattr(WorkerBase, method) and method not in _CALL_CODE:
            return call(*args, **kwargs)
    try:
        return call(*args, **kwargs)
    finally:
        worker.clear_graphs()


def name_of_method(method: str | Callable[..., Any]) -> str:
    """For messages."""
    return method if isinstance(method, str) else getattr(method, "__qualname__", repr(method))


def check_worker_cls(worker: WorkerBase, platform_name: str) -> None:
    """ContractError where its class lacks methods that the engine calls, with all of them; a warning for one that may
    be needed.
    """
    worker_cls = type(worker)
    described = f"worker {dotted_path(worker_cls)} of {platform_name}"
    if missing := missing_methods(worker_cls, with_sleep=worker.model_config.enable_sleep_mode):
        raise ContractError(
            f"{described} does not implement: {describe_missing(worker_cls, missing)}. "
            "The engine calls these methods of every worker",
            plugin=platform_name,
        )
    if may_lack_sample_tokens(worker_cls):
        logger.warning(
            "%s does not implement sample_tokens(), which follows on an execute_model() that returns None; by its "
            "annotation it may",
            described,
        )


def _method_of(worker: WorkerBase, name: str, platform_name: str) -> Callable[..., Any]:
    method: Callable[..., Any] | None = getattr(worker, name, None)
    if callable(method):
        return method
    cls = type(worker)
    known = [known for known in dir(cls) if not known.startswith("_")]
    raise ContractError(
        f"worker {dotted_path(cls)} of {platform_name} has no method "
        f"{name!r}{did_you_mean(name, known)}; worker.extension_cls can add it",
        plugin=platform_name,
    )
