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


def owned_key(name: str, owner: str) -> str:
    """The key for what ``owner`` registers as ``name``, in a registry that keeps what each owner does."""
    return f"{name}@{owner}"


def split_key(key: str) -> tuple[str, str]:
    """Name and owner, of a key that :func:`owned_key` made."""
    name, _, owner = key.partition("@")
    return name, owner


def key_that_counts(keys: Iterable[str], name: str, scope: Scope) -> str | None:
    """Of what is registered as ``name``, that of the platform's own distribution, else the last that is not another
    platform's; ``None`` where there is none.
    """
    found = [key for key in keys if split_key(key)[0] == name and split_key(key)[1] not in scope.foreign]
    own = owned_key(name, scope.distribution)
    return own if own in found else found[-1] if found else None
