"""Class paths in the settings: code that the user names without a plugin, which obeys the same limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from vllm_ext import envs
from vllm_ext.config import Config, Settings
from vllm_ext.contracts.qualname import is_class_path
from vllm_ext.discovery import ExtensionRecord, Provider
from vllm_ext.errors import ConfigError, VllmExtError
from vllm_ext.plan.requirements import VLLM, mentions_vllm
from vllm_ext.plan.rules import value_of
from vllm_ext.plan.screen import ALLOWED_KEY, refused_distribution

CLASS_PATH_KEYS = (
    "attention.backend",
    "worker.cls",
    "worker.extension_cls",
    "communicator.cls",
    "engine.scheduler_cls",
    "engine.logits_processors",
)


def modules_in_question(records: Iterable[ExtensionRecord], config: Config) -> set[str]:
    """Modules whose distribution :func:`resolve` has to know for these records and settings."""
    modules = {module for _, path in class_paths(config.settings) if not _is_ours(module := _module_of(path))}
    if config.settings.allow_distributions is None:
        modules.clear()
    if config.settings.host == VLLM or any(mentions_vllm(record) for record in records):
        modules.add(VLLM)
    return modules


def class_paths(settings: Settings) -> list[tuple[str, str]]:
    """Class paths in the settings, with their keys."""
    values = {key: value_of(settings, key) for key in CLASS_PATH_KEYS}
    each = [(key, path) for key, value in values.items() for path in (value if isinstance(value, list) else [value])]
    return [(key, path) for key, path in each if path is not None and is_class_path(path)]


def check_class_paths(
    config: Config, providers: Mapping[str, Provider], errors: list[VllmExtError], notes: list[str]
) -> Settings:
    """The settings that hold: in safe mode, without class paths.

    What ``allow_distributions`` does not admit is added to ``errors``, what is left out to ``notes``.
    """
    settings = config.settings
    for key, path in class_paths(settings):
        where = config.where(key)
        if config.safe_mode:
            notes.append(f"{where} names {path!r}, which is not used: {envs.VLLM_EXT_SAFE_MODE} is on")
            settings = _without(settings, key)
        elif (refusal := _refusal(settings, _module_of(path), providers)) is not None:
            errors.append(ConfigError(f"{where} names {path!r}, but {refusal}"))
    return settings


def _refusal(settings: Settings, module: str, providers: Mapping[str, Provider]) -> str | None:
    if settings.allow_distributions is None or _is_ours(module):
        return None
    provider = providers.get(module)
    if provider is None:
        return f"no installed distribution provides module {module!r}, and {ALLOWED_KEY} admits only distributions"
    refusal = refused_distribution(settings, provider.distribution, provider.version)
    return None if refusal is None else f"{ALLOWED_KEY} {refusal}. Add {provider.distribution!r} there"


def _without(settings: Settings, key: str) -> Settings:
    section, _, name = key.partition(".")
    changed = msgspec.structs.replace(getattr(settings, section), **{name: value_of(Settings(), key)})
    return msgspec.structs.replace(settings, **{section: changed})


def _module_of(path: str) -> str:
    module, colon, _ = path.partition(":")
    return module if colon else path.rpartition(".")[0]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "vllm_ext"
