"""What ``LLM`` and ``AsyncLLM`` share: the ways to make one, all of which lead to a dispatcher."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from vllm_ext.config import Config, Override, load_config
from vllm_ext.config.vllm_names import INSTEAD
from vllm_ext.contracts.attention import dtype_name
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.engine_config import require_embedded
from vllm_ext.dispatch.logits_processors import class_path_of
from vllm_ext.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.stat_logger import StatLoggerFactory

_OTHER_NAMES = {"float": "float32", "half": "float16"}
"""vLLM's and torch's further names of dtypes, which the settings have one name for."""


class FrontEnd(ABC):
    """A model on the chosen platform; what it can be asked is a subclass's business. Arguments: :class:`LLM`."""

    caller: ClassVar[str]
    """The name by which the origin of a keyword's value is shown."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        platform: str | list[str] | None = None,
        config_files: Sequence[str | Path] = (),
        overrides: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        stat_loggers: Sequence[StatLoggerFactory] | None = None,
        io_processor_plugin: str | None = None,
        **engine_settings: Any,
    ) -> None:
        if overrides is not None and not isinstance(overrides, Mapping):
            raise self._wrong_kind("overrides", overrides, "a dictionary of settings by key")
        if isinstance(config_files, str) or not isinstance(config_files, Iterable):
            raise self._wrong_kind("config_files", config_files, "a list of YAML files")
        if stat_loggers is not None and not isinstance(stat_loggers, Iterable):
            raise self._wrong_kind(
                "stat_loggers", stat_loggers, "a list of classes, or of functions that make a logger"
            )
        settings = [self._keyword("overrides", key, value) for key, value in (overrides or {}).items()]
        if model is not None:
            engine_settings["model"] = str(model)
        if dtype is not None:
            name = dtype_name(dtype)
            engine_settings["dtype"] = _OTHER_NAMES.get(name, name)
        if isinstance(classes := engine_settings.get("logits_processors"), list | tuple):
            engine_settings["logits_processors"] = [class_path_of(each) for each in classes]
        settings += [
            self._keyword(name, f"engine.{name}", value)
            for name, value in engine_settings.items()
            # A program hands on what it was started with, such as revision=None.
            if value is not None or name not in INSTEAD
        ]
        if platform is not None:
            settings.append(self._keyword("platform", "platform.driver", platform))
        if io_processor_plugin is not None:
            settings.append(self._keyword("io_processor_plugin", "plugins.io_processor.use", io_processor_plugin))
        self._start(_dispatcher_for(load_config(config_files, settings), progress, stat_loggers))

    def _keyword(self, name: str, key: str, value: Any) -> Override:
        if isinstance(value, np.generic):
            value = value.item()
        return Override(key, value, f"{self.caller}({name}=...)", "keyword")

    def _wrong_kind(self, name: str, value: object, expected: str) -> ConfigError:
        return ConfigError(f"{self.caller}({name}=...) is {value!r}; it takes {expected}")

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        progress: bool | None = None,
        stat_loggers: Sequence[StatLoggerFactory] | None = None,
    ) -> Self:
        """One for settings that are loaded already; errors as of the constructor. An extension of vLLM's contract."""
        return cls.from_dispatcher(_dispatcher_for(config, progress, stat_loggers))

    @classmethod
    def from_dispatcher(cls, dispatcher: Dispatcher) -> Self:
        """One on a dispatcher that is made already; errors as of the constructor. An extension of vLLM's contract."""
        front_end = cls.__new__(cls)
        front_end._start(dispatcher)
        return front_end

    @abstractmethod
    def _start(self, dispatcher: Dispatcher) -> None:
        """Start the engine; called once, by whichever way this was made."""


def _is_terminal(stream: Any) -> bool:
    """False also of ``None``, which a program without a console has, of a stand-in with ``write()`` alone, and of a
    stream that is closed.
    """
    return hasattr(stream, "isatty") and not getattr(stream, "closed", False) and bool(stream.isatty())


def _dispatcher_for(
    config: Config, progress: bool | None, stat_loggers: Sequence[StatLoggerFactory] | None
) -> Dispatcher:
    """A dispatcher for settings that are loaded; ``progress`` is shown on a terminal where it is ``None``."""
    require_embedded(config.settings, config.where("host"))
    dispatcher = bootstrap(config).dispatcher(progress=_is_terminal(sys.stderr) if progress is None else progress)
    dispatcher.stat_logger_factories = tuple(stat_loggers or ())
    return dispatcher
