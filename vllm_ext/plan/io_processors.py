"""Which IO processor an engine has: the user's choice, else the model's where the user allowed that one by its name.

A model directory is data: what it names is looked up among what the user enabled, and never imported on its word alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from vllm_ext import envs
from vllm_ext.config import Config, Origin
from vllm_ext.contracts.groups import IO_PROCESSOR
from vllm_ext.errors import did_you_mean, listing
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.names import in_yaml, matches, matches_any
from vllm_ext.plan.plan import Plan
from vllm_ext.plan.screen import VLLM_PLUGINS_ORIGIN

USE_KEY = "plugins.io_processor.use"
ENABLED_KEY = "plugins.io_processor.enabled"
MODEL_KEY = "io_processor_plugin"
"""Key of a model's ``config.json``."""


class ModelsWish(NamedTuple):
    """The IO processor that a model directory names, and the file in which it does."""

    name: str
    source: str


class IOProcessorChoice(NamedTuple):
    """The plugin to load, or why there is none."""

    decision: Decision | None
    refusal: str = ""
    """What to tell who asks for an IO processor where there is none: whole sentences."""
    warning: str = ""
    """What a user should know when the engine starts; empty where all is as they wanted it."""


def choose_io_processor(plan: Plan, config: Config, wish: ModelsWish | None) -> IOProcessorChoice:
    """The IO processor of an engine. Pure.

    Args:
        plan: made for the settings ``config``; what they name in ``plugins.io_processor.use`` is selected in it.
        wish: what the model names, if anything. It is followed where the user named the same plugin in
            ``plugins.io_processor.enabled`` or ``VLLM_PLUGINS``; that all are enabled is not enough.
    """
    if selected := plan.selected(IO_PROCESSOR.key):
        return IOProcessorChoice(selected[0])
    if (use := config.settings.plugins.io_processor.use) is not None:
        refusal = f"{USE_KEY} names {use!r}, which is not used: {envs.VLLM_EXT_SAFE_MODE} leaves out all plugins"
        return IOProcessorChoice(None, refusal)
    installed = [d for d in plan.decisions if d.kind == IO_PROCESSOR.key and d.record is not None]
    if wish is None:
        ways = f"--io-processor, LLM(io_processor_plugin=...) or {USE_KEY}"
        return IOProcessorChoice(None, f"none is chosen. Name one with {ways}; installed: {_names(installed)}")
    fitting = [d for d in installed if d.record and matches(wish.name, d.record)]
    allowed = [d for d in fitting if d.status == "available" and _naming_origin(d, config)]
    if len(allowed) == 1:
        return IOProcessorChoice(_selected(allowed[0], config, wish))
    refusal = f"{wish.source} names the IO processor plugin {wish.name!r}, {_why_not(wish, fitting, installed, config)}"
    is_users_wish = bool(fitting) and all(d.status == "disabled" for d in fitting)
    return IOProcessorChoice(None, refusal, "" if is_users_wish else refusal)


def _naming_origin(decision: Decision, config: Config) -> Origin | None:
    """The setting by which the user allowed this one by its name; ``None`` where none does."""
    enabled = config.settings.plugins.io_processor.enabled
    if decision.record is None:
        return None
    if enabled != "all" and matches_any(enabled, decision.record):
        return config.origin(ENABLED_KEY)
    if enabled == "all" and matches_any(config.allow_list or (), decision.record):
        return VLLM_PLUGINS_ORIGIN
    return None


def _selected(decision: Decision, config: Config, wish: ModelsWish) -> Decision:
    """The decision, carried out: the user named the plugin, so it has to work."""
    origin = _naming_origin(decision, config)
    by = envs.VLLM_PLUGINS if origin is VLLM_PLUGINS_ORIGIN else ENABLED_KEY
    reason = f"{wish.source} names it, and {by} allows it"
    return msgspec.structs.replace(decision, status="selected", reason=reason, origin=origin, named=True)


def _why_not(wish: ModelsWish, fitting: Sequence[Decision], installed: Sequence[Decision], config: Config) -> str:
    """Why a model's wish is not followed, and what to do, as the rest of a sentence."""
    if not fitting:
        hint = did_you_mean(wish.name, {d.name for d in installed})
        return f"which is not installed{hint}; installed: {_names(installed)}"
    if len(usable := [d for d in fitting if d.status in ("available", "duplicate")]) > 1:
        choices = " or ".join(sorted(d.reference for d in usable))
        return f"which is installed more than once; write {choices} in {USE_KEY}"
    decision = fitting[0]
    if decision.status != "available":
        origin = f" ({decision.origin})" if decision.origin else ""
        return f"which is {decision.status}: {decision.reason}{origin}"
    enabled = config.settings.plugins.io_processor.enabled
    names = ", ".join(map(in_yaml, [decision.name] if enabled == "all" else [*enabled, decision.name]))
    return (
        f"and no code of it is run, as a model alone must not choose code: {decision} is installed, but not enabled by "
        f"name. To allow it, set {ENABLED_KEY}=[{names}], or {USE_KEY}={in_yaml(decision.name)}"
    )


def _names(decisions: Sequence[Decision]) -> str:
    return listing({d.name for d in decisions})
