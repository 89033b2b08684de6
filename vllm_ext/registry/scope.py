"""Whose registrations count: those of the running engine's own platform first, those of other platforms not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from packaging.utils import canonicalize_name


@dataclass(frozen=True, slots=True)
class Scope:
    """``distribution`` of the engine's platform, and ``foreign`` ones, of other platforms; canonical names."""

    distribution: str = ""
    foreign: frozenset[str] = frozenset()

    @classmethod
    def of(cls, distribution: str, foreign: Iterable[str]) -> Scope:
        """From names as they are written anywhere."""
        return cls(canonicalize_name(distribution), frozenset(canonicalize_name(name) for name in foreign))


_EVERYBODY = Scope()
_current: ContextVar[Scope] = ContextVar("vllm_ext_registry_scope", default=_EVERYBODY)


def current_scope() -> Scope:
    """The scope of the engine being built or stepped; outside of one, everybody's registrations count."""
    return _current.get()


@contextmanager
def use_scope(scope: Scope) -> Iterator[None]:
    """Make ``scope`` the current one inside the block (this thread or task)."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)
