"""The decision trail, with what a short run used of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vllm_ext.dispatch.registry_trail import registry_steps
from vllm_ext.dispatch.step import Step, path_of
from vllm_ext.registry.base import Registration, all_registries

if TYPE_CHECKING:
    from vllm_ext.check.usage import Usage
    from vllm_ext.plan import Plan, Receipt


def used_trail(plan: Plan, steps: Sequence[Step], usage: Usage, platform_path: str) -> list[Step]:
    """``steps``, as the trail has them without a run, with counts.

    Args:
        platform_path: class path of the platform, whose step has the name of its plugin.
    """
    ops, layers = usage.by(_op), usage.by(_attention)
    counted: list[Step] = []
    for step in steps:
        if step.slot == "registries" or (step.state == "kept" and step.candidate not in ops):
            continue
        if step.slot == "platform":
            step = _with_methods(step, usage, platform_path)
        elif step.slot in ("worker", "communicator"):
            step = _with_methods(step, usage, step.candidate)
        elif step.slot in ("attention", "ops"):
            step = _with_modules(step, layers if step.slot == "attention" else ops)
        elif step.slot == "general":
            step = _with_registrations(plan, step, usage)
        counted.append(step)
    counted += _not_foreseen(counted, "attention", layers)
    return counted + registry_steps(usage.looked_up_before)


def process_steps(receipts: Sequence[Receipt]) -> Iterator[Step]:
    """Every process of an engine, with what it proved to run."""
    for receipt in receipts:
        plugins = f"{', '.join(receipt.active)} in {receipt.seconds:.2f} s"
        reason = f"PID {receipt.pid} answered with plan {receipt.fingerprint[:_SHORT]}: {plugins}"
        yield Step("processes", receipt.name, "chosen", reason, "engine.executor")


def never_used(steps: Sequence[Step]) -> Iterator[str]:
    """What plugins registered in vain, a sentence each."""
    for step in steps:
        if step.state == "unused" and step.owner != OURS:
            yield f"{step.owner} registered {step.candidate}, and the run did not use it: {step.reason}"


_SHORT = 12
"""Digits that are shown of a fingerprint."""
OURS = Registration(None, None).owner_text


def _with_methods(step: Step, usage: Usage, path: str) -> Step:
    if step.state != "chosen":
        return step
    calls = usage.in_steps[step.slot, path]
    reason = "; ".join([step.reason, *(f"{name} {calls[name]}" for name in sorted(calls))])
    return step._replace(reason=reason, at_start=usage.at_start[step.slot, path], in_steps=calls.total())


def _with_modules(step: Step, found: dict[str, tuple[int, int]]) -> Step:
    if step.state not in ("chosen", "kept"):
        return step
    built, calls = found.get(step.candidate, (0, 0))
    return step._replace(at_start=built, in_steps=calls, state=step.state if built else "unused")


def _with_registrations(plan: Plan, step: Step, usage: Usage) -> Step:
    """How much of what a general plugin registered was asked for."""
    if step.state != "active":
        return step
    (decision,) = [d for d in plan.decisions if d.kind == "general" and str(d) == step.candidate][:1]
    asked = [
        registry.consulted[name] > usage.looked_up_before.get(registry.what, {}).get(name, 0)
        for registry in all_registries()
        for name, entry in registry.snapshot().items()
        if entry.owner and (entry.owner.distribution, entry.owner.plugin) == (decision.distribution, decision.name)
    ]
    if not asked:
        return step
    reason = f"{step.reason}; it registered {len(asked)}, of which the engine asked for {sum(asked)}"
    return step._replace(reason=reason, at_start=sum(asked))


def _not_foreseen(steps: Sequence[Step], slot: str, found: dict[str, tuple[int, int]]) -> Iterator[Step]:
    """Layers may need another choice than the model's configuration lets one expect."""
    known = {step.candidate for step in steps if step.slot == slot}
    for path, (built, calls) in found.items():
        if path not in known:
            yield Step(slot, path, "chosen", "layers of the model asked for it", "", at_start=built, in_steps=calls)


def _op(module: Any) -> str | None:
    from vllm_ext.contracts.custom_op import Replaceable

    return path_of(type(module)) if isinstance(module, Replaceable) else None


def _attention(module: Any) -> str | None:
    backend = getattr(module, "attn_backend", None)
    return path_of(backend) if isinstance(backend, type) else None
