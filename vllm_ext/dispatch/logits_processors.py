"""The logits processors of an engine besides its own: of plugins, then those that the settings name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm_ext.contracts.groups import LOGITS_PROCESSOR
from vllm_ext.contracts.logits_processor import LogitsProcessor
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import ConfigError, InvalidRequest, PluginError, VllmExtError, innermost_cause
from vllm_ext.managers import load_extensions
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import BoundPlan

SETTING = "engine.logits_processors"
NO_LOGITS = "the model pools, and no logits are computed"
"""Why an engine has none."""


class NamedLogitsProcessor(NamedTuple):
    """A class, and whose it is: ``logits processor plugin 'x' of acme 1.0``, for messages."""

    source: str
    cls: type[LogitsProcessor]


def load_logits_processors(bound_plan: BoundPlan, class_paths: Sequence[str]) -> tuple[NamedLogitsProcessor, ...]:
    """Import and check them, in the order in which they are applied. A class that comes twice is applied once.

    Args:
        class_paths: of the setting ``engine.logits_processors``.

    Raises:
        PluginLoadError, ContractError: one that the user named cannot be used.
    """
    found = {plugin.value: source_of(plugin.decision) for plugin in load_extensions(bound_plan, LOGITS_PROCESSOR)}
    for path in class_paths:
        base: Any = LogitsProcessor
        cls: type[LogitsProcessor] = resolve_class(path, base, slot=LOGITS_PROCESSOR.title, source=f"setting {SETTING}")
        found.setdefault(cls, f"logits processor {path!r} of setting {SETTING}")
    return tuple(NamedLogitsProcessor(source, cls) for cls, source in found.items())


def refuse_without_logits(class_paths: Sequence[str], where: str) -> None:
    """ConfigError where the user named some for a model that pools, as in vLLM; plugins of the kind are left out."""
    if class_paths:
        raise ConfigError(f"{where} names {', '.join(class_paths)}, and {NO_LOGITS}; leave it empty for this model")


def class_path_of(processor: Any) -> Any:
    """The class path of a class that is handed over itself; anything else as it is.

    Raises:
        ConfigError: the class cannot be found by its path, as workers have to.
    """
    if not isinstance(processor, type):
        return processor
    module, name = processor.__module__, processor.__qualname__
    if getattr(sys.modules.get(module), name, None) is not processor:
        raise ConfigError(
            f"{SETTING} has the class {name!r} of {module}, which cannot be imported from there, as workers do; define "
            "it at the top level of a module"
        )
    return f"{module}:{name}"


def validate_params(processors: Sequence[NamedLogitsProcessor], params: SamplingParams) -> None:
    """Ask each whether it can serve these parameters.

    Raises:
        InvalidRequest: one refuses them, by ValueError.
        PluginError: one fails in another way.
    """
    for source, cls in processors:
        try:
            cls.validate_params(params)
        except VllmExtError:
            raise
        except ValueError as error:
            raise InvalidRequest(f"{source} refuses the request: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"{source} failed in validate_params(): {innermost_cause(error)}", plugin=source
            ) from error
