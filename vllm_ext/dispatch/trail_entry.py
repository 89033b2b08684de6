"""An entry of the decision trail."""

from __future__ import annotations

from typing import NamedTuple

from vllm_ext.errors import VllmExtError

SLOTS = (
    *("platform", "general", "worker", "attention", "communicator", "ops", "logits_processors", "stat_loggers"),
    *("io_processor", "endpoint", "registries", "config", "processes"),
)


class TrailEntry(NamedTuple):
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
    owner: str = ""
    """Who registered it, or named it."""
    at_start: int | None = None
    """After a run: how many of it were built, or how often it was asked, while the engine started."""
    in_steps: int | None = None
    """After a run: how often it was called while the engine made steps."""
