"""Plans as JSON: for people and scripts to read, and for other processes to apply.

What is written can be read back as the same plan. Errors become their class and text; the exception objects of
outcomes stay in their process.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import msgspec

from vllm_ext import errors
from vllm_ext.errors import PluginError, VllmExtError
from vllm_ext.plan.bound import BoundPlan
from vllm_ext.plan.plan import Plan

SCHEMA_VERSION = 1
"""Of the JSON forms; raised when a reader of the old one would misread the new one."""

P = TypeVar("P", Plan, BoundPlan)


def plan_to_dict(plan: Plan | BoundPlan) -> dict[str, Any]:
    """The plan as plain values that JSON has, with ``schema_version``; of a bound plan with its fingerprint."""
    values: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    if isinstance(plan, BoundPlan):
        values["fingerprint"] = plan.fingerprint
        outcomes = tuple(dataclasses.replace(outcome, error=None) for outcome in plan.outcomes)
        plan = msgspec.structs.replace(plan, outcomes=outcomes)
    values.update(msgspec.to_builtins(plan, enc_hook=_encode))
    return values


def plan_from_dict(values: dict[str, Any], kind: type[P]) -> P:
    """The plan that :func:`plan_to_dict` wrote.

    Args:
        values: its result, as it came through JSON.
        kind: :class:`Plan` or :class:`BoundPlan`.

    Raises:
        ValueError: it has another schema version or form, or a fingerprint that is not that of its content.
    """
    plan = _read(values, kind)
    if isinstance(plan, BoundPlan) and plan.fingerprint != values.get("fingerprint"):
        raise ValueError(
            f"the plan says its fingerprint is {values.get('fingerprint')}, but that of its content is "
            f"{plan.fingerprint}"
        )
    return plan


def bound_plan_from_content(values: dict[str, Any]) -> BoundPlan:
    """As :func:`plan_from_dict`, for who compares more than the fingerprint."""
    return _read(values, BoundPlan)


def _read(values: dict[str, Any], kind: type[P]) -> P:
    body = dict(values)
    version, _ = body.pop("schema_version", None), body.pop("fingerprint", None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"the plan has schema_version {version!r}; this vllm_ext reads {SCHEMA_VERSION}")
    try:
        return msgspec.convert(body, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, VllmExtError):
        return {"type": type(value).__name__, "message": str(value), "plugin": getattr(value, "plugin", None)}
    raise NotImplementedError(f"{type(value)} is no part of a plan")


def _decode(kind: type, value: Any) -> Any:
    if kind is VllmExtError and isinstance(value, dict):
        error_cls = getattr(errors, str(value.get("type")), None)
        if isinstance(error_cls, type) and issubclass(error_cls, VllmExtError):
            message = str(value.get("message"))
            if issubclass(error_cls, PluginError):
                return error_cls(message, plugin=value.get("plugin"))
            return error_cls(message)
    raise msgspec.ValidationError(f"{value!r} is no error of vllm_ext")
