"""The bound plan that this code runs under: a running engine's, else the first one of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vllm_ext.plan import BoundPlan

_running: ContextVar[BoundPlan | None] = ContextVar("vllm_ext_bound_plan", default=None)


class _ProcessDefault:
    bound_plan: BoundPlan | None = None


@contextmanager
def use_bound_plan(bound_plan: BoundPlan) -> Iterator[None]:
    """Make ``bound_plan`` the current one inside the block (this thread or task)."""
    token = _running.set(bound_plan)
    try:
        yield
    finally:
        _running.reset(token)


def find_bound_plan() -> BoundPlan | None:
    """The plan that has been decided on here; ``None`` where nothing was started yet in this process."""
    return _running.get() or _ProcessDefault.bound_plan


def set_default_bound_plan(bound_plan: BoundPlan | None) -> None:
    """Make it the process's; ``None`` forgets it."""
    _ProcessDefault.bound_plan = bound_plan
