"""Functions as ops of torch, so that compiled graphs can hold them: vLLM's ``direct_register_custom_op``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.library import Library

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.errors import RegistrationError, one_line
from vllm_ext.registry.owners import Owner, current_owner

NAMESPACE = "vllm_ext"
_LIBRARY = Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


_FAKE = "fake"
"""Stands for a dispatch key."""


@dataclass(slots=True)
class _Op:
    """An op of torch, which can be defined once in a process; what computes it may be given anew."""

    name: str
    schema: str
    owner: Owner
    library: Library
    """Kept, since torch forgets an op with its library."""
    functions: dict[str, tuple[Callable[..., Any], Owner]] = field(default_factory=dict)
    """By dispatch key."""


_ops: dict[str, _Op] = {}
_lock = threading.RLock()


def direct_register_custom_op(
    op_name: str,
    op_func: Callable[..., Any],
    mutates_args: Sequence[str] | None = None,
    fake_impl: Callable[..., Any] | None = None,
    target_lib: Library | None = None,
    dispatch_key: str | None = None,
    tags: Sequence[torch.Tag] = (),
) -> None:
    """Make a function callable as ``torch.ops.vllm_ext.<op_name>``.

    May be called again: the same party's newest function counts, under each dispatch key. The op's schema, by which
    compiled graphs know it, stays.

    Args:
        op_func: computes the op. Its annotations are the schema: tensors, numbers, strings, and lists of them. What it
            returns must share no memory with its arguments.
        mutates_args: names of the arguments that it changes in place.
        fake_impl: gives tensors of the right shape and dtype, without computing; compiled graphs need it.
        target_lib: a library of one's own, which defines the op in its namespace instead.
        dispatch_key: torch's key of the device, such as ``CPU``; the current platform's where omitted.
        tags: torch's, of the op.

    Raises:
        RegistrationError: the annotations are no schema; the op has another one already, or somebody else's function
            under this key.
    """
    library: Any = _LIBRARY if target_lib is None else target_lib
    key = current_platform.dispatch_key if dispatch_key is None else dispatch_key
    qualified = f"{library.ns}::{op_name}"
    owner = current_owner()
    if owner.module.startswith("vllm_ext."):
        # Ops of ours are, whoever imports their module first.
        owner = Owner(owner.module)
    try:
        schema = torch.library.infer_schema(op_func, mutates_args=tuple(mutates_args or ()))
    except ValueError as error:
        raise RegistrationError(f"torch op {qualified}: {error}") from error
    with _lock:
        op = _ops.get(qualified)
        if op is None:
            _tell_torch(qualified, lambda: library.define(op_name + schema, tags=tuple(tags)))
            op = _ops[qualified] = _Op(qualified, schema, owner, library)
        _check(op, schema, key, owner)
        _give(op, key, op_func, owner, lambda call: library.impl(op_name, call, dispatch_key=key))
        # One fake serves all keys: it is the first party's.
        if fake_impl is not None and op.functions.get(_FAKE, (None, owner))[1].identity == owner.identity:
            _give(op, _FAKE, fake_impl, owner, lambda call: library._register_fake(op_name, call))


def _check(op: _Op, schema: str, key: str, owner: Owner) -> None:
    if schema != op.schema:
        raise RegistrationError(
            f"torch op {op.name} is registered by {op.owner} as {op.schema}, and cannot become {schema}; give the "
            "other one another name"
        )
    _, other = op.functions.get(key, (None, owner))
    if other.identity != owner.identity:
        raise RegistrationError(
            f"torch op {op.name} for {key} is registered by {other}, and cannot be registered by {owner} as well; "
            "give it another name"
        )


def _give(
    op: _Op, key: str, function: Callable[..., Any], owner: Owner, register: Callable[[Callable[..., Any]], Any]
) -> None:
    """Let ``function`` compute ``op`` under ``key``; torch is told once, and keeps what calls the newest."""
    is_new = key not in op.functions
    op.functions[key] = function, owner
    if not is_new:
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return op.functions[key][0](*args, **kwargs)

    try:
        _tell_torch(op.name, lambda: register(call))
    except RegistrationError:
        del op.functions[key]
        raise


def _tell_torch(name: str, tell: Callable[[], Any]) -> None:
    try:
        tell()
    except RuntimeError as error:
        raise RegistrationError(f"torch op {name}: {one_line(str(error))}") from error


def _after_fork() -> None:
    """The lock may have been held by a thread that the child does not have."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
