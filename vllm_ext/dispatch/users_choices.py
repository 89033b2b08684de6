"""What the user named holds, also where a platform's hook has put something else in its place."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from vllm_ext.config import Config, Settings
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.hooks import Change
from vllm_ext.plan.rules import value_of

logger = logging.getLogger(__name__)

_CLASS_PATHS = {
    "parallel_config.worker_cls": "worker.cls",
    "parallel_config.worker_extension_cls": "worker.extension_cls",
    "scheduler_config.scheduler_cls": "engine.scheduler_cls",
}
"""Fields that a hook may fill where the setting leaves them to it, each with the setting."""


class Overruled(NamedTuple):
    """A change by a hook that does not hold, since a setting names something else."""

    change: Change
    key: str
    """The setting."""
    origin: str
    """Where its value comes from."""
    kept: Any
    """Its value, which holds."""


def keep_users_choices(
    vllm_config: VllmConfig, settings: Settings, config: Config, changes: tuple[Change, ...]
) -> tuple[tuple[Change, ...], tuple[Overruled, ...]]:
    """Put back what the settings name, with a warning for each hook that had replaced it.

    vLLM's page tells authors of platforms to set ``worker_cls``, and many do so whatever it is; who names a class for
    one engine means that engine.

    Args:
        settings: those that hold, where ``config`` says where each comes from.
        changes: what the hooks changed.

    Returns: the changes that hold, and those that do not.
    """
    overruled = []
    for path, key in _CLASS_PATHS.items():
        named = value_of(settings, key)
        last = next((change for change in reversed(changes) if change.path == path), None)
        if last is None or named in ("auto", "", None):
            continue
        section, _, field = path.partition(".")
        setattr(getattr(vllm_config, section), field, named)
        overruled.append(Overruled(last, key, str(config.origin(key)), named))
        logger.warning(
            "platform plugin %r: %s() sets %s to %r, and %s (%s) names %r, which is used; the hook should set it only "
            "where it is %r",
            *(
                last.plugin,
                last.hook,
                path,
                last.after,
                key,
                config.origin(key),
                named,
                value_of(Settings(), key) or "",
            ),
        )
    paths = {one.change.path for one in overruled}
    return tuple(change for change in changes if change.path not in paths), tuple(overruled)
