"""What a plugin registers: seen by comparing the registries before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_ext.errors import dotted_path, one_line
from vllm_ext.registry.attention_backends import ATTENTION_BACKENDS, IN_TREE
from vllm_ext.registry.base import OURS, Registration, Registry, all_registries
from vllm_ext.registry.custom_ops import CUSTOM_OPS
from vllm_ext.registry.lora_resolvers import LORA_RESOLVERS
from vllm_ext.registry.model_loaders import MODEL_LOADERS
from vllm_ext.registry.models import ModelRegistry
from vllm_ext.registry.owners import Owner
from vllm_ext.registry.quantization import QUANTIZATION_METHODS
from vllm_ext.registry.scope import split_key
from vllm_ext.registry.tokenizers import TokenizerRegistry

EVERY = (
    ATTENTION_BACKENDS,
    CUSTOM_OPS,
    LORA_RESOLVERS,
    MODEL_LOADERS,
    ModelRegistry,
    QUANTIZATION_METHODS,
    TokenizerRegistry,
)
"""What there is to register into: all of it has to be there before a plugin is loaded."""


class Registrations:
    """Takes note of what is registered when it is made; :meth:`found` says what has been added or replaced since."""

    def __init__(self) -> None:
        self._before = {registry.what: registry.snapshot() for registry in all_registries()}

    def found(self, distribution: str) -> tuple[str, ...]:
        """A sentence for each entry, without its subject, which is a plugin of ``distribution``.

        Of what somebody else has registered meanwhile the sentence says who.
        """
        return tuple(
            one_line(_sentence(registry, name, entry, before.get(name)) + _for_whom(entry.owner, distribution))
            for registry, before in self._compared()
            for name, entry in sorted(registry.snapshot().items())
            if entry.owner is not None and entry is not before.get(name)
        )

    def class_paths(self, distribution: str) -> tuple[tuple[str, str], ...]:
        """What it is, and the path, of each entry that ``distribution`` has registered by a class path."""
        return tuple(
            (one_line(f"{registry.what} {split_key(name)[0]!r}"), entry.value)
            for registry, before in self._compared()
            for name, entry in sorted(registry.snapshot().items())
            if isinstance(entry.value, str) and entry is not before.get(name)
            if entry.owner is not None and entry.owner.identity == distribution
        )

    def _compared(self) -> Iterator[tuple[Registry[Any], dict[str, Registration[Any]]]]:
        for registry in all_registries():
            yield registry, self._before.get(registry.what, {})


def _sentence(registry: Registry[Any], key: str, entry: Registration[Any], before: Registration[Any] | None) -> str:
    value = _path_of(entry.value)
    if registry is CUSTOM_OPS.oot:
        name = split_key(key)[0]
        op = CUSTOM_OPS.ops.snapshot().get(name)
        return f"replaces custom op {name!r} of {op.owner_text if op else OURS} with {value}"
    if registry is ATTENTION_BACKENDS.overrides and (name := split_key(key)[0]) in IN_TREE:
        return f"replaces attention backend {name!r} of {OURS} with {value}"
    if registry in (ATTENTION_BACKENDS.overrides, ATTENTION_BACKENDS.added):
        return f"adds attention backend {split_key(key)[0]!r}: {value}"
    if before is not None:
        return f"replaces {registry.what} {key!r} of {before.owner_text} with {value}"
    return f"adds {registry.what} {key!r}: {value}"


def _for_whom(owner: Owner | None, distribution: str) -> str:
    return "" if owner is None or owner.identity == distribution else f"; it was registered by {owner}"


def _path_of(value: Any) -> str:
    """A class path; of an object that of its class."""
    if isinstance(value, str):
        return value
    return dotted_path(value if isinstance(value, type) else type(value))
