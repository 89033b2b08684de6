"""Custom ops by name, and the out-of-tree classes that take their place."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from vllm_ext.errors import RegistrationError, did_you_mean, listing
from vllm_ext.registry.base import Registration, Registry
from vllm_ext.registry.owners import current_owner

logger = logging.getLogger(__name__)


class _CustomOpRegistry:
    """In-tree ops by op name; replacements by the class name of the op they replace and by their owner."""

    def __init__(self) -> None:
        self.ops: Registry[type] = Registry("custom op")
        self.oot: Registry[type] = Registry("out-of-tree custom op")

    def register(self, name: str, op_cls: type) -> None:
        self.ops.register(name, op_cls)

    def register_oot(self, target: type | str, replacement: type) -> None:
        """Let ``replacement`` be built in place of ``target`` (a registered class, or the name of one)."""
        known = {entry.value.__name__: entry.value for entry in self.ops.snapshot().values()}
        name = target if isinstance(target, str) else target.__name__
        op_cls = known.get(name)
        if op_cls is None:
            raise RegistrationError(
                f"no custom op of class {name!r} is registered to be replaced{did_you_mean(name, known)}; "
                f"registered: {listing(known)}"
            )
        if not isinstance(replacement, type) or not issubclass(replacement, op_cls):
            raise RegistrationError(
                f"{_name(replacement)} cannot replace custom op {name!r}: it is not a subclass of {_name(op_cls)}"
            )
        owner = current_owner().identity
        others = [o for (op, o) in map(_split, self.oot.names()) if op == name and o != owner]
        if others:
            logger.warning(
                "custom op %r is replaced by %s and by %s; a platform uses its own distribution's",
                name,
                owner,
                others[0],
            )
        self.oot.register(f"{name}@{owner}", replacement)

    def find_oot(self, op_cls: type, distribution: str, foreign: Collection[str] = ()) -> type | None:
        """The class to build instead of exactly ``op_cls``; subclasses of a replaced op are left alone.

        Args:
            distribution: the platform's, whose replacement is taken if there is one; else the last one registered.
            foreign: distributions of other platforms, whose replacements are for them alone.
        """
        found: dict[str, type] = {}
        for key, entry in self.oot.snapshot().items():
            name, owner = _split(key)
            if name == op_cls.__name__ and owner not in foreign and op_cls in entry.value.__mro__[1:]:
                found[owner] = entry.value
        return found.get(distribution) or (list(found.values())[-1] if found else None)

    def replacements(self, op_cls: type) -> list[tuple[str, type]]:
        """All classes registered to be built instead of ``op_cls``, each with its owner."""
        entries = self.oot.snapshot().items()
        return [(entry.owner_text, entry.value) for key, entry in entries if _split(key)[0] == op_cls.__name__]

    def snapshot(self) -> tuple[dict[str, Registration[Any]], dict[str, Registration[Any]]]:
        return self.ops.snapshot(), self.oot.snapshot()

    def restore(self, state: tuple[dict[str, Registration[Any]], dict[str, Registration[Any]]]) -> None:
        self.ops.restore(state[0])
        self.oot.restore(state[1])


def _split(key: str) -> tuple[str, str]:
    """Class name of the op and identity of the owner."""
    name, _, owner = key.partition("@")
    return name, owner


def _name(thing: object) -> str:
    return f"{thing.__module__}.{thing.__qualname__}" if isinstance(thing, type) else repr(thing)


CUSTOM_OPS = _CustomOpRegistry()
