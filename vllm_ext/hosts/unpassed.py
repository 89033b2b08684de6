"""Settings that no environment variable brings to vLLM: they are said, and not passed over in silence."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence

import msgspec

from vllm_ext.config import Settings
from vllm_ext.contracts.groups import GENERAL
from vllm_ext.plan import BoundPlan
from vllm_ext.plan.rules import value_of

_OPTIONS = {
    "attention.backend": "--attention-backend",
    "worker.cls": "--worker-cls",
    "worker.extension_cls": "--worker-extension-cls",
    "plugins.io_processor.use": "--io-processor-plugin",
}
"""vLLM's options for settings of ours that are a text."""
_DEFAULTS = Settings()


def unpassed_settings(bound_plan: BoundPlan, command: Sequence[str] = ()) -> list[str]:
    """One sentence for each setting that is not at its default and that vLLM is not told of.

    ``command`` is what is to be started: what it says by an option of vLLM's, it is taken to say rightly.
    """
    return [*_with_option(bound_plan, command), *_without_option(bound_plan)]


def _with_option(bound_plan: BoundPlan, command: Sequence[str]) -> Iterator[str]:
    settings = bound_plan.plan.settings
    options = {
        key: (option, str(value_of(settings, key))) for key, option in _OPTIONS.items() if _is_changed(settings, key)
    }
    if settings.custom_ops:
        config = json.dumps({"custom_ops": settings.custom_ops})
        options["custom_ops"] = ("--compilation-config", config)
    if bound_plan.options:
        options["options"] = ("--additional-config", json.dumps(bound_plan.options))
    for key, (option, value) in options.items():
        if not any(word.partition("=")[0] == option for word in command):
            yield f"no variable tells vLLM of {key}; its own option does: {option} {shlex.quote(value)}"


def _without_option(bound_plan: BoundPlan) -> Iterator[str]:
    settings = bound_plan.plan.settings
    engine = [f"engine.{f.name}" for f in msgspec.structs.fields(settings.engine)]
    if changed := [key for key in (*engine, "communicator.cls") if _is_changed(settings, key)]:
        yield f"vLLM is not told of {', '.join(changed)}, which the embedded engine alone reads"
    enabled = settings.plugins.general.enabled
    if enabled != "all" and len(bound_plan.selected(GENERAL.key)) > 1:
        yield (
            "vLLM runs general plugins in the order in which it finds them, and not in that of plugins.general.enabled"
        )


def _is_changed(settings: Settings, key: str) -> bool:
    return bool(value_of(settings, key) != value_of(_DEFAULTS, key))
