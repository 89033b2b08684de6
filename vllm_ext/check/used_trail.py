"""The decision trail, with what a short run used of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vllm_ext.dispatch.registry_trail import registry_entries
from vllm_ext.dispatch.trail_entry import TrailEntry
from vllm_ext.errors import dotted_path
from vllm_ext.registry.base import OURS, all_registries

if TYPE_CHECKING:
    from vllm_ext.check.usage import Usage
    from vllm_ext.plan import Plan, Receipt


def used_trail(plan: Plan, entries: Sequence[TrailEntry], usage: Usage, platform_path: str) -> list[TrailEntry]:
    """``steps``, as the trail has them without a run, with counts.

    Args:
        platform_path: class path of the platform, whose entry has the name of its plugin.
    """
    ops, layers = usage.by(_op), usage.by(_attention)
    counted: list[TrailEntry] = []
    for entry in entries:
        if entry.slot == "registries" or (entry.state == "kept" and entry.candidate not in ops):
            continue
        if entry.slot == "platform":
            entry = _with_methods(entry, usage, platform_path)
        elif entry.slot in ("worker", "communicator"):
            entry = _with_methods(entry, usage, entry.candidate)
        elif entry.slot in ("attention", "ops"):
            entry = _with_modules(entry, layers if entry.slot == "attention" else ops)
        elif entry.slot == "general":
            entry = _with_registrations(plan, entry, usage)
        counted.append(entry)
    counted += _not_foreseen(counted, "attention", layers)
    return counted + registry_entries(usage.looked_up_before)


def process_entries(receipts: Sequence[Receipt]) -> Iterator[TrailEntry]:
    """Every process of an engine, with what it proved to run."""
    for receipt in receipts:
        plugins = f"{', '.join(receipt.active)} in {receipt.seconds:.2f} s"
        reason = f"PID {receipt.pid} answered with plan {receipt.fingerprint[:_SHORT]}: {plugins}"
        yield TrailEntry("processes", receipt.name, "chosen", reason, "engine.executor")


def never_used(entries: Sequence[TrailEntry]) -> Iterator[str]:
    """What plugins registered in vain, a sentence each."""
    for entry in entries:
        if entry.state == "unused" and entry.owner != OURS:
            yield f"{entry.owner} registered {entry.candidate}, and the run did not use it: {entry.reason}"


_SHORT = 12
"""Digits that are shown of a fingerprint."""


def _with_methods(entry: TrailEntry, usage: Usage, path: str) -> TrailEntry:
    if entry.state != "chosen":
        return entry
    calls = usage.in_steps[entry.slot, path]
    reason = "; ".join([entry.reason, *(f"{name} {calls[name]}" for name in sorted(calls))])
    return entry._replace(reason=reason, at_start=usage.at_start[entry.slot, path], in_steps=calls.total())


def _with_modules(entry: TrailEntry, found: dict[str, tuple[int, int]]) -> TrailEntry:
    if entry.state not in ("chosen", "kept"):
        return entry
    built, calls = found.get(entry.candidate, (0, 0))
    return entry._replace(at_start=built, in_steps=calls, state=entry.state if built else "unused")


def _with_registrations(plan: Plan, entry: TrailEntry, usage: Usage) -> TrailEntry:
    """How much of what a general plugin registered was asked for."""
    if entry.state != "active":
        return entry
    (decision,) = [d for d in plan.decisions if d.kind == "general" and str(d) == entry.candidate][:1]
    asked = [
        registry.consulted[name] > usage.looked_up_before.get(registry.what, {}).get(name, 0)
        for registry in all_registries()
        for name, registered in registry.snapshot().items()
        if (owner := registered.owner) and (owner.distribution, owner.plugin) == (decision.distribution, decision.name)
    ]
    if not asked:
        return entry
    reason = f"{entry.reason}; it registered {len(asked)}, of which the engine asked for {sum(asked)}"
    return entry._replace(reason=reason, at_start=sum(asked))


def _not_foreseen(entries: Sequence[TrailEntry], slot: str, found: dict[str, tuple[int, int]]) -> Iterator[TrailEntry]:
    """Layers may need another choice than the model's configuration lets one expect."""
    known = {entry.candidate for entry in entries if entry.slot == slot}
    for path, (built, calls) in found.items():
        if path not in known:
            yield TrailEntry(
                slot, path, "chosen", "layers of the model asked for it", "", at_start=built, in_steps=calls
            )


def _op(module: Any) -> str | None:
    from vllm_ext.contracts.custom_op import Replaceable

    return dotted_path(type(module)) if isinstance(module, Replaceable) else None


def _attention(module: Any) -> str | None:
    backend = getattr(module, "attn_backend", None)
    return dotted_path(backend) if isinstance(backend, type) else None
