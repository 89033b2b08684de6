"""A mapping of names to registrations, with owners and a way back."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vllm_ext.registry.owners import Owner, current_owner

T = TypeVar("T")
logger = logging.getLogger(__name__)

OURS = "vllm_ext itself"
"""Who owns what comes with vllm_ext, for people."""


@dataclass(frozen=True, slots=True)
class Registration(Generic[T]):
    """A registered value and who registered it; ``owner`` is ``None`` for what comes with vllm_ext."""

    value: T
    owner: Owner | None

    @property
    def owner_text(self) -> str:
        return str(self.owner) if self.owner else OURS

    @property
    def identity(self) -> str:
        """The same for all registrations of one party."""
        return self.owner.identity if self.owner else "vllm_ext"


class Registry(Generic[T]):
    """Registrations of one kind (``what``, for messages), by name. Safe to use from several threads."""

    def __init__(self, what: str, builtin: dict[str, T] | None = None) -> None:
        self.what = what
        self._entries = {name: Registration(value, None) for name, value in (builtin or {}).items()}
        self.consulted: Counter[str] = Counter()
        """How often each entry was asked for, in this process."""
        self._lock = threading.RLock()
        _ALL.add(self)

    def register(self, name: str, value: T) -> None:
        """Add or replace an entry.

        The same owner, or anybody with the same value, registers again without a word; a replacement of somebody
        else's entry is a warning that names both.
        """
        owner = current_owner()
        # In-tree ops register when their module is first imported, which may be while a plugin is being loaded.
        entry = Registration(value, None if owner.module.startswith("vllm_ext.") else owner)
        with self._lock:
            old = self._entries.get(name)
            self._entries[name] = entry
        if old is None or old.value == value or old.identity == entry.identity:
            return
        logger.warning("%s %r: %s replaces the registration of %s", self.what, name, entry.owner_text, old.owner_text)

    def find(self, name: str) -> Registration[T] | None:
        """The entry, to be used; that is counted."""
        entry = self._entries.get(name)
        if entry is not None:
            with self._lock:
                self.consulted[name] += 1
        return entry

    def names(self) -> list[str]:
        return sorted(self._entries)

    def snapshot(self) -> dict[str, Registration[T]]:
        """The present state, for :meth:`restore`."""
        with self._lock:
            return dict(self._entries)

    def restore(self, state: dict[str, Registration[T]]) -> None:
        """Return to a state that :meth:`snapshot` gave; meant for tests."""
        with self._lock:
            self._entries = dict(state)

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that the child does not have."""
        self._lock = threading.RLock()


_ALL: weakref.WeakSet[Registry[Any]] = weakref.WeakSet()


def all_registries() -> list[Registry[Any]]:
    """Every registry of this process, by what it holds."""
    return sorted(_ALL, key=lambda registry: registry.what)


def _after_fork() -> None:
    for registry in _ALL:
        registry.after_fork()


os.register_at_fork(after_in_child=_after_fork)
