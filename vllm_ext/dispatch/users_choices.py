"""What the user named holds, also where a platform's hook has put something else in its place."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from vllm_ext.config import Config, Settings
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.hooks import Change
from vllm_ext.plan.rules import value_of

logger = logging.getLogger(__name__)

_FIELDS = {
    "attention_config.backend": ("attention.backend", None),
    "load_config.load_format": ("engine.load_format", "auto"),
    "model_config.quantization": ("engine.quantization", None),
    "model_config.tokenizer_mode": ("engine.tokenizer_mode", "auto"),
    "parallel_config.distributed_executor_backend": ("engine.executor", "uniproc"),
    "parallel_config.worker_cls": ("worker.cls", "auto"),
    "parallel_config.worker_extension_cls": ("worker.extension_cls", ""),
    "scheduler_config.scheduler_cls": ("engine.scheduler_cls", "auto"),
}
"""Fields that a hook may fill where the setting leaves them to it: the setting, and what the field holds then."""


class Overruled(NamedTuple):
    """A change by a hook that does not hold, since a setting names something else."""

    change: Change
    key: str
    """The setting."""
    origin: str
    """Where its value comes from."""
    kept: Any
    """Its value, which holds."""

    @property
    def text(self) -> str:
        """For people: who set what, and what is used."""
        plugin, hook, path, value = self.change.plugin, self.change.hook, self.change.path, self.change.after
        return (
            f"platform plugin {plugin!r}: {hook}() sets {path} to {value!r}, and {self.key} ({self.origin}) names "
            f"{self.kept!r}, which is used"
        )


def keep_users_choices(
    vllm_config: VllmConfig, settings: Settings, config: Config, changes: tuple[Change, ...]
) -> tuple[tuple[Change, ...], tuple[Overruled, ...]]:
    """Put back what the settings name, with a warning for each hook that had replaced it.

    vLLM's page tells authors of platforms to set ``worker_cls``, and many do so whatever it is; who names something
    for one engine means that engine.

    Args:
        settings: those that hold, where ``config`` says where each comes from.
        changes: what the hooks changed.

    Returns: the changes that hold, and those that do not.
    """
    overruled = []
    for path, (key, unset) in _FIELDS.items():
        named = value_of(settings, key)
        last = next((change for change in reversed(changes) if change.path == path), None)
        is_named = key in config.origins and named not in ("auto", "", None)
        if last is None or not is_named or named == last.after:
            continue
        section, _, field = path.partition(".")
        setattr(getattr(vllm_config, section), field, named)
        one = Overruled(last, key, str(config.origin(key)), named)
        overruled.append(one)
        logger.warning("%s; the hook should set it only where it is %r", one.text, unset)
    paths = {one.change.path for one in overruled}
    return tuple(change for change in changes if change.path not in paths), tuple(overruled)
