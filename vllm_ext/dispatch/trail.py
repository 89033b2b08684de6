"""The decision trail: per slot what was considered, what was chosen, why, and which setting or hook decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.errors import VllmExtError
from vllm_ext.plan import Decision, Outcome, Plan
from vllm_ext.registry.custom_ops import CUSTOM_OPS
from vllm_ext.registry.models import ModelRegistry

SLOTS = ("platform", "general", "worker", "attention", "communicator", "ops")


class Step(NamedTuple):
    """One thing that was considered for a slot."""

    slot: str
    candidate: str
    state: str
    """``chosen``, or why it was not: the status of its decision, or the state of its outcome."""
    reason: str
    origin: str
    """The setting, hook or default that decided."""
    error: VllmExtError | None = None
    """Why the slot cannot be filled, where it cannot."""


def plugin_trail(plan: Plan, outcomes: Sequence[Outcome], chosen: Decision | None = None) -> list[Step]:
    """Every platform and every general plugin that is installed or named; the chosen platform is the first.

    Args:
        outcomes: what became of those that were asked, or run.
        chosen: the platform that won, if any.
    """
    states = {outcome.key: outcome for outcome in outcomes}
    steps = []
    for decision in plan.decisions:
        if decision.kind not in ("platform", "general"):
            continue
        outcome = states.get(decision.key) if decision.is_used else None
        reason = f"{decision.reason}; {outcome.detail}" if outcome and outcome.detail else decision.reason
        state = "chosen" if decision == chosen else outcome.state if outcome else decision.status
        steps.append(Step(decision.kind, str(decision), state, reason, str(decision.origin or "")))
    return sorted(steps, key=lambda step: (step.slot != "platform", step.state != "chosen"))


def dispatch_trail(dispatcher: Dispatcher) -> list[Step]:
    """Worker, attention, communicator and ops, each resolved and checked as for an engine; builds nothing."""
    with dispatcher.activate():
        return [
            _resolved(dispatcher, "worker", "worker.cls", dispatcher.worker_cls),
            _resolved(dispatcher, "attention", "attention.backend", lambda: _attention(dispatcher)),
            _resolved(dispatcher, "communicator", "communicator.cls", dispatcher.communicator_cls),
            *_ops(dispatcher),
        ]


def _resolved(dispatcher: Dispatcher, slot: str, key: str, resolve: Callable[[], Any]) -> Step:
    is_platforms = dispatcher.is_platforms_choice(key)
    reason = f"{dispatcher.platform_name} chose it" if is_platforms else f"{key} names it"
    origin = dispatcher.platform_origin if is_platforms else str(dispatcher.config.origin(key))
    try:
        return Step(slot, _path(resolve()), "chosen", reason, origin)
    except VllmExtError as error:
        return Step(slot, "", "failed", str(error), origin, error)


def _attention(dispatcher: Dispatcher) -> type:
    """The backend for a layer as the model's configuration describes it."""
    vllm_config = dispatcher.vllm_config
    hf_config = vllm_config.model_config.hf_config
    # GPT-2 and its kin have shorter names.
    num_heads = hf_config.positive_int("num_attention_heads", hf_config.get("n_head"))
    hidden_size = hf_config.positive_int("hidden_size", hf_config.get("n_embd"))
    head_size = hf_config.positive_int("head_dim", hidden_size // num_heads)
    selector = AttentionSelectorConfig(
        head_size=head_size,
        dtype=vllm_config.model_config.dtype,
        kv_cache_dtype="auto",
        block_size=vllm_config.cache_config.block_size,
    )
    return dispatcher.attention_factory(selector, num_heads)


def _ops(dispatcher: Dispatcher) -> Iterator[Step]:
    """The custom ops of the model: which class is built, and which of its methods runs."""
    from vllm_ext.contracts.custom_op import CustomOp, choose_forward, find_replacement

    model_config = dispatcher.vllm_config.model_config
    # The modules of a model register its ops.
    try:
        ModelRegistry.resolve_model_cls(model_config.architectures)
    except VllmExtError as error:
        yield Step("ops", "", "failed", str(error), "", error)
        return
    origin = str(dispatcher.config.origin("custom_ops"))
    for name in CUSTOM_OPS.names():
        op_cls = CUSTOM_OPS.get(name)
        replacement = find_replacement(op_cls)
        method = choose_forward(replacement or op_cls) if issubclass(op_cls, CustomOp) else "forward"
        reason = f"{name} runs {method}"
        if replacement is not None:
            reason += f", in place of {_path(op_cls)}"
        yield Step("ops", _path(replacement or op_cls), "chosen", reason, origin)
        for entry in CUSTOM_OPS.replacements(name):
            if entry.value is not replacement:
                yield Step(
                    "ops", _path(entry.value), "passed_over", f"{entry.owner_text} registered it for {name}", origin
                )


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
