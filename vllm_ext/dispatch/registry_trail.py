"""The part of the decision trail that the registries know: custom ops, and whatever else plugins registered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.trail_entry import TrailEntry
from vllm_ext.errors import VllmExtError, dotted_path
from vllm_ext.registry.base import Registration, all_registries
from vllm_ext.registry.custom_ops import CUSTOM_OPS
from vllm_ext.registry.models import ModelRegistry


def op_entries(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """The custom ops and layers that there are: which class is built, and which of its methods runs."""
    from vllm_ext.contracts.custom_op import find_replacement

    # The modules of a model register its ops.
    try:
        ModelRegistry.resolve_model_cls(dispatcher.vllm_config.model_config.architectures)
    except VllmExtError as error:
        yield TrailEntry("ops", "", "failed", str(error), "", error)
        return
    origin = str(dispatcher.config.origin("custom_ops"))
    for name in CUSTOM_OPS.names():
        op_cls = CUSTOM_OPS.get(name)
        replacement = find_replacement(op_cls)
        yield _chosen_op(name, op_cls, replacement, origin)
        for entry in CUSTOM_OPS.replacements(name):
            if entry.value is not replacement:
                reason = f"registered for {name}, and {_why_not(dispatcher, entry)}"
                yield TrailEntry("ops", dotted_path(entry.value), "passed_over", reason, origin, owner=entry.owner_text)
        if replacement is not None:
            yield from _kept(name, op_cls, origin)


def _chosen_op(name: str, op_cls: type, replacement: type | None, origin: str) -> TrailEntry:
    from vllm_ext.contracts.custom_op import CustomOp, choose_forward

    built = replacement or op_cls
    method = choose_forward(built) if issubclass(built, CustomOp) else "forward"
    reason = f"{name} runs {method}" + (f", in place of {dotted_path(op_cls)}" if replacement else "")
    entries = CUSTOM_OPS.replacements(name) if replacement else [CUSTOM_OPS.ops.snapshot()[name]]
    owner = next(entry.owner_text for entry in entries if entry.value is built)
    return TrailEntry("ops", dotted_path(built), "chosen", reason, origin, owner=owner)


def _why_not(dispatcher: Dispatcher, entry: Registration[type]) -> str:
    if not dispatcher.platform.is_out_of_tree():
        return f"{dispatcher.platform_name} is an in-tree one, which keeps the in-tree ops"
    if entry.identity in dispatcher.scope.foreign:
        return f"{entry.identity} has a platform of its own, which is not used"
    return "that of the platform's distribution comes first, or else the last one registered"


def _kept(name: str, op_cls: type, origin: str) -> Iterator[TrailEntry]:
    """Subclasses of a replaced op that models build as they are."""
    # By path: a module that was imported anew leaves its old classes behind.
    replacements = {dotted_path(entry.value) for entry in CUSTOM_OPS.replacements(name)}
    for cls in _subclasses(op_cls):
        if not replacements & {dotted_path(base) for base in cls.__mro__} and CUSTOM_OPS.name_of(cls) is None:
            reason = (
                f"a subclass of {dotted_path(op_cls)}, and only that class itself is replaced; registered as an op, it "
                "can have a replacement of its own"
            )
            yield TrailEntry("ops", dotted_path(cls), "kept", reason, origin, owner=cls.__module__.partition(".")[0])


def _subclasses(cls: Any) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def registry_entries(before: Mapping[str, Mapping[str, int]] | None = None) -> list[TrailEntry]:
    """What plugins registered, and what of ours an engine asked for; ops have a slot of their own.

    Args:
        before: how often each entry of each registry had been asked for, before an engine was run.
    """
    entries = []
    for registry in all_registries():
        if registry in (CUSTOM_OPS.ops, CUSTOM_OPS.oot):
            continue
        for name, entry in sorted(registry.snapshot().items()):
            asked = None if before is None else registry.consulted[name] - before.get(registry.what, {}).get(name, 0)
            if entry.owner is None and not asked:
                continue
            state = "registered" if asked is None else "used" if asked else "unused"
            reason = "" if asked is None else "the engine asked for it" if asked else "the engine did not ask for it"
            candidate = f"{registry.what} {name!r}"
            entries.append(
                TrailEntry("registries", candidate, state, reason, "", owner=entry.owner_text, at_start=asked)
            )
    return entries
