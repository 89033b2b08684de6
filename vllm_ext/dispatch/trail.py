"""The decision trail: per slot what was considered, what was chosen, why, and which setting or hook decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from vllm_ext.contracts.groups import ENDPOINT, GENERAL, LOGITS_PROCESSOR, PLATFORM, STAT_LOGGER
from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.dispatch.config_values import shown
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.endpoints import load_endpoints, possible_tasks
from vllm_ext.dispatch.io_processor import find_io_processor
from vllm_ext.dispatch.logits_processors import SETTING
from vllm_ext.dispatch.pooler_config import is_encoder
from vllm_ext.dispatch.registry_trail import op_entries, registry_entries
from vllm_ext.dispatch.trail_entry import TrailEntry
from vllm_ext.errors import VllmExtError, dotted_path
from vllm_ext.managers import extension_outcomes
from vllm_ext.plan import Decision, Outcome, Plan
from vllm_ext.registry.base import all_registries

_STAT_LOGGERS_KEY = "plugins.stat_logger.enabled"
_ENDPOINTS_KEY = "plugins.endpoint.enabled"


def plugin_trail(plan: Plan, outcomes: Sequence[Outcome], chosen: Decision | None = None) -> list[TrailEntry]:
    """Every platform and every general plugin that is installed or named; the chosen platform is the first.

    Args:
        outcomes: what became of those that were asked, or run.
        chosen: the platform that won, if any.
    """
    entries = [
        *_decided(plan, PLATFORM.key, PLATFORM.key, outcomes, chosen),
        *_decided(plan, GENERAL.key, GENERAL.key, outcomes, chosen),
    ]
    return sorted(entries, key=lambda entry: (entry.slot != "platform", entry.state != "chosen"))


def _decided(
    plan: Plan, kind: str, slot: str, outcomes: Sequence[Outcome], chosen: Decision | None = None
) -> Iterator[TrailEntry]:
    """Every plugin of a kind, with what was decided and what became of it."""
    states = {outcome.key: outcome for outcome in outcomes}
    for decision in plan.decisions:
        if decision.kind != kind:
            continue
        outcome = states.get(decision.key) if decision.is_used else None
        reason = f"{decision.reason}; {outcome.detail}" if outcome and outcome.detail else decision.reason
        state = "chosen" if decision == chosen else outcome.state if outcome else decision.status
        owner = f"{decision.distribution} {decision.version}".strip()
        yield TrailEntry(slot, str(decision), state, reason, str(decision.origin or ""), owner=owner)


def dispatch_trail(dispatcher: Dispatcher) -> list[TrailEntry]:
    """Worker, attention, communicator, ops, and plugins of the other kinds, each resolved and checked as for an
    engine, and what plugins registered; builds nothing.
    """
    with dispatcher.activate():
        entries = [
            _resolved(dispatcher, "worker", "worker.cls", dispatcher.worker_cls),
            *_attention_entries(dispatcher),
            _resolved(dispatcher, "communicator", "communicator.cls", dispatcher.communicator_cls),
            *op_entries(dispatcher),
            *_logits_processor_entries(dispatcher),
            *_stat_logger_entries(dispatcher),
            *_io_processor_entries(dispatcher),
            *_endpoint_entries(dispatcher),
            *_changes(dispatcher),
        ]
        return [_with_owner(dispatcher, entry) for entry in entries] + registry_entries()


def _resolved(dispatcher: Dispatcher, slot: str, key: str, resolve: Callable[[], Any]) -> TrailEntry:
    is_platforms = dispatcher.is_platforms_choice(key)
    reason = f"{dispatcher.platform_name} chose it" if is_platforms else f"{key} names it"
    origin = dispatcher.platform_origin if is_platforms else str(dispatcher.config.origin(key))
    try:
        return TrailEntry(slot, dotted_path(resolve()), "chosen", reason, origin)
    except VllmExtError as error:
        return TrailEntry(slot, "", "failed", str(error), origin, error)


def _logits_processor_entries(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """Those of plugins, in the order in which they are applied, then those that the settings name."""
    slot, origin = "logits_processors", str(dispatcher.config.origin(SETTING))
    state = "chosen"
    try:
        dispatcher.load_logits_processors()
    except VllmExtError as error:
        yield TrailEntry(slot, "", "failed", str(error), origin, error)
        state = "failed"
    bound_plan = dispatcher.bound_plan
    outcomes = (*bound_plan.outcomes, *extension_outcomes(bound_plan, LOGITS_PROCESSOR))
    yield from _decided(bound_plan.plan, LOGITS_PROCESSOR.key, slot, outcomes)
    for path in dispatcher.vllm_config.model_config.logits_processors:
        yield TrailEntry(slot, path, state, f"{SETTING} names it", origin, owner="the settings")


def _stat_logger_entries(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """Those of plugins, in the order in which they are told."""
    try:
        dispatcher.load_stat_loggers()
    except VllmExtError as error:
        yield TrailEntry(
            "stat_loggers", "", "failed", str(error), str(dispatcher.config.origin(_STAT_LOGGERS_KEY)), error
        )
    outcomes = extension_outcomes(dispatcher.bound_plan, STAT_LOGGER)
    yield from _decided(dispatcher.bound_plan.plan, STAT_LOGGER.key, "stat_loggers", outcomes)


def _io_processor_entries(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """All that are installed, the chosen one loaded and checked, and what a model wants in vain."""
    slot, plan = "io_processor", dispatcher.bound_plan.plan
    chosen, error = None, None
    try:
        choice = find_io_processor(
            dispatcher.bound_plan, dispatcher.config, dispatcher.vllm_config.model_config.hf_config
        )
        chosen = choice.decision
        dispatcher.load_io_processor()
        if choice.warning:
            yield TrailEntry(slot, "", "refused", choice.warning, "the model")
    except VllmExtError as caught:
        error = caught
        yield TrailEntry(slot, "", "failed", str(error), str((chosen and chosen.origin) or "the model"), error)
    # The plan's own decision on the model's choice is that nobody asked for it.
    decisions = [chosen if chosen and d.key == chosen.key else d for d in plan.decisions]
    yield from _decided(
        msgspec.structs.replace(plan, decisions=tuple(decisions)), slot, slot, (), None if error else chosen
    )


def _endpoint_entries(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """Those that are installed; what a server would do with one that is loaded, as far as the model's files tell."""
    bound_plan, objections = dispatcher.bound_plan, {}
    tasks = possible_tasks(dispatcher.vllm_config.model_config)
    try:
        for endpoint in load_endpoints(bound_plan):
            objections[str(endpoint.decision)] = endpoint.objection(tasks)
    except VllmExtError as error:
        yield TrailEntry("endpoint", "", "failed", str(error), str(dispatcher.config.origin(_ENDPOINTS_KEY)), error)
    outcomes = extension_outcomes(bound_plan, ENDPOINT)
    for entry in _decided(bound_plan.plan, ENDPOINT.key, "endpoint", outcomes):
        if objection := objections.get(entry.candidate):
            reason = f"{entry.reason}; a server leaves it out: {objection}"
            entry = entry._replace(state="passed_over", reason=reason)
        yield entry


def _attention_entries(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """The backend for a layer as the model's configuration describes it, or why there is none; then the others."""
    try:
        dispatcher.attention_factory(*_layer(dispatcher))
    except VllmExtError as error:
        yield TrailEntry(
            "attention", "", "failed", str(error), str(dispatcher.config.origin("attention.backend")), error
        )
    for choice in dispatcher.attention_choices.values():
        for row, considered in zip(choice.rows(), choice.considered, strict=True):
            yield TrailEntry("attention", *row, owner=considered.registered_by)


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


def _changes(dispatcher: Dispatcher) -> Iterator[TrailEntry]:
    """What the platform's hooks changed in the configuration, and what of it does not hold."""
    for change in dispatcher.changes:
        before, after = shown(change.path, change.before), shown(change.path, change.after)
        reason = f"{change.hook}() changed it from {before} to {after}"
        if not change.is_field:
            reason = f"{change.hook}() set it to {after}; it is no field, and vllm-ext does not act on it"
        yield TrailEntry("config", change.path, "changed" if change.is_field else "passed_over", reason, change.origin)
    for one in dispatcher.overruled:
        reason = f"{one.change.hook}() changed it to {one.change.after!r}; {one.key} names {one.kept!r}, which holds"
        yield TrailEntry("config", one.change.path, "passed_over", reason, one.origin)


def _with_owner(dispatcher: Dispatcher, entry: TrailEntry) -> TrailEntry:
    """Who registered a class, or else who named it: the platform or the settings."""
    if entry.owner or not entry.candidate:
        return entry
    for registry in all_registries():
        for registered in registry.snapshot().values():
            value = registered.value
            if entry.candidate == (dotted_path(value) if isinstance(value, type) else value):
                return entry._replace(owner=registered.owner_text)
    platform = dispatcher.bound_plan.platform
    if platform is None or entry.origin != dispatcher.platform_origin:
        return entry._replace(owner="the settings")
    return entry._replace(owner=f"{platform.distribution} {platform.version}")
