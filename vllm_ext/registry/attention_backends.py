"""Attention backends by name: the in-tree ones, names of vLLM's to be filled, and what plugins register.

Registrations are kept by owner, so that engines on different platforms in one process do not see each other's.
"""

from __future__ import annotations

import logging
import re

from vllm_ext.errors import RegistrationError, did_you_mean, listing
from vllm_ext.registry.base import Registration, Registry
from vllm_ext.registry.owners import current_owner
from vllm_ext.registry.scope import Scope, key_that_counts, owned_key, split_key

logger = logging.getLogger(__name__)

IN_TREE: dict[str, str] = {
    "CPU_ATTN": "vllm_ext.attention.backends.cpu_attn.CPUAttentionBackend",
    "SDPA": "vllm_ext.attention.backends.sdpa.SDPABackend",
    "REFERENCE": "vllm_ext.attention.backends.reference.ReferenceBackend",
}
TO_BE_FILLED = (
    "CUSTOM",
    "FLASHINFER",
    "FLASH_ATTN",
    "FLEX_ATTENTION",
    "ROCM_AITER_FA",
    "ROCM_ATTN",
    "TORCH_SDPA",
    "TREE_ATTN",
    "TRITON_ATTN",
)
"""Names of vLLM's that stand for nothing here until a plugin overrides them; plugins written for vLLM mention them."""

_CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")
"""``module.Class`` too, as vLLM's enum has them."""


class _AttentionBackendRegistry:
    """Class paths by name and owner: ``added`` are new names, ``overrides`` replace what a name stands for."""

    def __init__(self) -> None:
        self.added: Registry[str] = Registry("attention backend")
        self.overrides: Registry[str] = Registry("override of attention backend")

    def add(self, name: str, class_path: str) -> None:
        """Add a backend under a name of its own.

        Raises:
            RegistrationError: the name is an in-tree one or one of vLLM's; or the class path is none.
        """
        taken = {known.casefold(): known for known in (*IN_TREE, *TO_BE_FILLED, *_names(self.added))}
        same = taken.get(name.casefold(), name)
        if same != name:
            raise RegistrationError(
                f"attention backend {name!r} differs from {same!r} in case only, which settings ignore"
            )
        if name in IN_TREE or name in TO_BE_FILLED:
            raise RegistrationError(
                f"attention backend {name!r} exists already; to override it, register "
                f"AttentionBackendEnum.{name}, and for another one choose another name"
            )
        self._register(self.added, name, class_path)

    def override(self, name: str, class_path: str) -> None:
        """Let ``name`` stand for another class."""
        self._register(self.overrides, name, class_path)

    def find(self, name: str, scope: Scope) -> Registration[str] | None:
        """What ``name`` stands for in ``scope``, and who says so, to be used; ``None`` where nothing is registered."""
        for registry in (self.overrides, self.added):
            if (key := key_that_counts(registry.snapshot(), name, scope)) is not None:
                return registry.find(key)
        return Registration(IN_TREE[name], None) if name in IN_TREE else None

    def peek(self, name: str, scope: Scope) -> Registration[str] | None:
        """As :meth:`find`, to be shown."""
        override, added = self.peek_override(name, scope), self.peek_added(name, scope)
        return override or added or (Registration(IN_TREE[name], None) if name in IN_TREE else None)

    def peek_override(self, name: str, scope: Scope) -> Registration[str] | None:
        """The override of ``name`` that counts in ``scope``, if any."""
        key = key_that_counts(self.overrides.snapshot(), name, scope)
        return None if key is None else self.overrides.snapshot()[key]

    def peek_added(self, name: str, scope: Scope) -> Registration[str] | None:
        """What the new name ``name`` was added with, in ``scope``, if it was."""
        key = key_that_counts(self.added.snapshot(), name, scope)
        return None if key is None else self.added.snapshot()[key]

    def names(self, scope: Scope) -> list[str]:
        """All names that exist in ``scope``, whether something is registered for them or not, in-tree ones first."""
        added = [name for name in _names(self.added) if key_that_counts(self.added.snapshot(), name, scope)]
        return [*IN_TREE, *added, *TO_BE_FILLED]

    def usable(self, scope: Scope) -> list[str]:
        """Those of :meth:`names` that stand for a class."""
        return [name for name in self.names(scope) if self.peek(name, scope)]

    def foreign(self, scope: Scope) -> list[tuple[str, Registration[str]]]:
        """What plugins registered for platforms other than that of ``scope``."""
        everything = [*self.overrides.snapshot().items(), *self.added.snapshot().items()]
        return [(split_key(key)[0], entry) for key, entry in everything if split_key(key)[1] in scope.foreign]

    def clear_override(self, name: str, scope: Scope) -> None:
        """Forget the overrides of ``name`` that count in ``scope``; those for other platforms stay."""
        kept = {
            key: entry
            for key, entry in self.overrides.snapshot().items()
            if split_key(key)[0] != name or split_key(key)[1] in scope.foreign
        }
        self.overrides.restore(kept)

    def unknown(self, text: str, scope: Scope) -> str:
        """The text of an error: no backend is called ``text``."""
        known = self.usable(scope)
        return f"no attention backend is called {text!r}{did_you_mean(text, known)}; registered: {listing(known)}"

    def snapshot(self) -> tuple[dict[str, Registration[str]], dict[str, Registration[str]]]:
        return self.added.snapshot(), self.overrides.snapshot()

    def restore(self, state: tuple[dict[str, Registration[str]], dict[str, Registration[str]]]) -> None:
        self.added.restore(state[0])
        self.overrides.restore(state[1])

    def _register(self, registry: Registry[str], name: str, class_path: str) -> None:
        if not isinstance(class_path, str) or not _CLASS_PATH.fullmatch(class_path):
            raise RegistrationError(
                f"attention backend {name!r}: {class_path!r} is not a class path 'package.module.Class'"
            )
        party = current_owner().identity
        before = registry.snapshot()
        key = owned_key(name, party)
        registry.register(key, class_path)
        if key in before and before[key].value == class_path:
            return
        for other, entry in before.items():
            if split_key(other)[0] == name and other != key and entry.value != class_path:
                logger.warning(
                    "attention backend %r: %s registers %s, and %s has registered %s; an engine uses its own "
                    "platform's, else the last one",
                    name,
                    registry.snapshot()[key].owner_text,
                    class_path,
                    entry.owner_text,
                    entry.value,
                )


def _names(registry: Registry[str]) -> list[str]:
    return list(dict.fromkeys(split_key(key)[0] for key in registry.snapshot()))


ATTENTION_BACKENDS = _AttentionBackendRegistry()
