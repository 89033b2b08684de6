"""The decision trail: per slot what was considered, what was chosen, why, and which setting or hook decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vllm_ext.contracts.groups import GENERAL, LOGITS_PROCESSOR, PLATFORM, STAT_LOGGER
from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.io_processor import find_io_processor
from vllm_ext.dispatch.logits_processors import SETTING
from vllm_ext.dispatch.pooler_config import is_encoder
from vllm_ext.dispatch.registry_trail import op_steps, registry_steps
from vllm_ext.dispatch.step import Step, path_of
from vllm_ext.errors import VllmExtError
from vllm_ext.managers import extension_outcomes
from vllm_ext.plan import Decision, Outcome, Plan
from vllm_ext.registry.base import all_registries

_STAT_LOGGERS_KEY = "plugins.stat_logger.enabled"


def plugin_trail(plan: Plan, outcomes: Sequence[Outcome], chosen: Decision | None = None) -> list[Step]:
    """Every platform and every general plugin that is installed or named; the chosen platform is the first.

    Args:
        outcomes: what became of those that were asked, or run.
        chosen: the platform that won, if any.
    """
    steps = [
        *_decided(plan, PLATFORM.key, PLATFORM.key, outcomes, chosen),
        *_decided(plan, GENERAL.key, GENERAL.key, outcomes, chosen),
    ]
    return sorted(steps, key=lambda step: (step.slot != "platform", step.state != "chosen"))


def _decided(
    plan: Plan, kind: str, slot: str, outcomes: Sequence[Outcome], chosen: Decision | None = None
) -> Iterator[Step]:
    """Every plugin of a kind, with what was decided and what became of it."""
    states = {outcome.key: outcome for outcome in outcomes}
    for decision in plan.decisions:
        if decision.kind != kind:
            continue
        outcome = states.get(decision.key) if decision.is_used else None
        reason = f"{decision.reason}; {outcome.detail}" if outcome and outcome.detail else decision.reason
        state = "chosen" if decision == chosen else outcome.state if outcome else decision.status
        owner = f"{decision.distribution} {decision.version}".strip()
        yield Step(slot, str(decision), state, reason, str(decision.origin or ""), owner=owner)


def dispatch_trail(dispatcher: Dispatcher) -> list[Step]:
    """Worker, attention, communicator, ops, and plugins of the other kinds, each resolved and checked as for an
    engine, and what plugins registered; builds nothing.
    """
    with dispatcher.activate():
        steps = [
            _resolved(dispatcher, "worker", "worker.cls", dispatcher.worker_cls),
            *_attention_steps(dispatcher),
            _resolved(dispatcher, "communicator", "communicator.cls", dispatcher.communicator_cls),
            *op_steps(dispatcher),
            *_logits_processor_steps(dispatcher),
            *_stat_logger_steps(dispatcher),
            *_io_processor_steps(dispatcher),
            *_changes(dispatcher),
        ]
        return [_with_owner(dispatcher, step) for step in steps] + registry_steps()


def _resolved(dispatcher: Dispatcher, slot: str, key: str, resolve: Callable[[], Any]) -> Step:
    is_platforms = dispatcher.is_platforms_choice(key)
    reason = f"{dispatcher.platform_name} chose it" if is_platforms else f"{key} names it"
    origin = dispatcher.platform_origin if is_platforms else str(dispatcher.config.origin(key))
    try:
        return Step(slot, path_of(resolve()), "chosen", reason, origin)
    except VllmExtError as error:
        return Step(slot, "", "failed", str(error), origin, error)


def _logits_processor_steps(dispatcher: Dispatcher) -> Iterator[Step]:
    """Those of plugins, in the order in which they are applied, then those that the settings name."""
    slot, origin = "logits_processors", str(dispatcher.config.origin(SETTING))
    try:
        paths = {path_of(processor.cls) for processor in dispatcher.logits_processors}
    except VllmExtError as error:
        yield Step(slot, "", "failed", str(error), origin, error)
        paths = set()
    outcomes = extension_outcomes(dispatcher.bound_plan, LOGITS_PROCESSOR)
    yield from _decided(dispatcher.bound_plan.plan, LOGITS_PROCESSOR.key, slot, outcomes)
    for path in dispatcher.vllm_config.model_config.logits_processors:
        state = "chosen" if path.replace(":", ".") in paths else "failed"
        yield Step(slot, path, state, f"{SETTING} names it", origin, owner="the settings")


def _stat_logger_steps(dispatcher: Dispatcher) -> Iterator[Step]:
    """Those of plugins, in the order in which they are told."""
    try:
        _ = dispatcher.stat_loggers
    except VllmExtError as error:
        yield Step("stat_loggers", "", "failed", str(error), str(dispatcher.config.origin(_STAT_LOGGERS_KEY)), error)
    outcomes = extension_outcomes(dispatcher.bound_plan, STAT_LOGGER)
    yield from _decided(dispatcher.bound_plan.plan, STAT_LOGGER.key, "stat_loggers", outcomes)


def _io_processor_steps(dispatcher: Dispatcher) -> Iterator[Step]:
    """All that are installed, the chosen one loaded and checked, and what a model wants in vain."""
    slot, plan = "io_processor", dispatcher.bound_plan.plan
    chosen, error = None, None
    try:
        choice = find_io_processor(
            dispatcher.bound_plan, dispatcher.config, dispatcher.vllm_config.model_config.hf_config
        )
        chosen = choice.decision
        _ = dispatcher.io_processor
        if choice.warning:
            yield Step(slot, "", "refused", choice.warning, "the model")
    except VllmExtError as caught:
        error = caught
        yield Step(slot, "", "failed", str(error), str((chosen and chosen.origin) or "the model"), error)
    # The plan's own decision on the model's choice is that nobody asked for it.
    decisions = [chosen if chosen and d.key == chosen.key else d for d in plan.decisions]
    yield from _decided(
        dataclasses.replace(plan, decisions=tuple(decisions)), slot, slot, (), None if error else chosen
    )


def _attention_steps(dispatcher: Dispatcher) -> Iterator[Step]:
    """The backend for a layer as the model's configuration describes it, or why there is none; then the others."""
    try:
        dispatcher.attention_factory(*_layer(dispatcher))
    except VllmExtError as error:
        yield Step("attention", "", "failed", str(error), str(dispatcher.config.origin("attention.backend")), error)
    for choice in dispatcher.attention_choices.values():
        for row, considered in zip(choice.rows(), choice.considered, strict=True):
            yield Step("attention", *row, owner=considered.registered_by)


def _layer(dispatcher: Dispatcher) -> tuple[AttentionSelectorConfig, int]:
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
        block_size=vllm_config.cache_config.block_size_of_user,
        attn_type="encoder_only" if is_encoder(hf_config) else "decoder",
    )
    return selector, num_heads


def _changes(dispatcher: Dispatcher) -> Iterator[Step]:
    """What the platform's hooks changed in the configuration."""
    for change in dispatcher.changes:
        reason = f"{change.hook}() changed it from {change.before!r} to {change.after!r}"
        yield Step("config", change.path, "changed", reason, change.origin)


def _with_owner(dispatcher: Dispatcher, step: Step) -> Step:
    """Who registered a class, or else who named it: the platform or the settings."""
    if step.owner or not step.candidate:
        return step
    for registry in all_registries():
        for entry in registry.snapshot().values():
            if step.candidate == (path_of(entry.value) if isinstance(entry.value, type) else entry.value):
                return step._replace(owner=entry.owner_text)
    platform = dispatcher.bound_plan.platform
    if platform is None or step.origin != dispatcher.platform_origin:
        return step._replace(owner="the settings")
    return step._replace(owner=f"{platform.distribution} {platform.version}")
