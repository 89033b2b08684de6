"""What keeps a record from being used whatever asks for it, and what to say where the user did ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vllm_ext import envs
from vllm_ext.config import Config, Origin
from vllm_ext.config.schema import Settings
from vllm_ext.contracts.groups import is_read_by_vllm
from vllm_ext.discovery import ExtensionRecord, Provider
from vllm_ext.discovery.records import IN_TREE_DISTRIBUTION
from vllm_ext.errors import ConfigError, IncompatiblePlugin, PluginLoadError, VllmExtError, did_you_mean, listing
from vllm_ext.plan.decisions import Status
from vllm_ext.plan.names import matches_any
from vllm_ext.plan.requirements import VLLM, is_met, parse_requirement, unmet_on_vllm, unmet_on_vllm_ext
from vllm_ext.plan.rules import Rule, value_of

VLLM_PLUGINS_ORIGIN = Origin("environment", envs.VLLM_PLUGINS)
SAFE_MODE_ORIGIN = Origin("environment", envs.VLLM_EXT_SAFE_MODE)
ALLOWED_KEY = "allow_distributions"


class Verdict(msgspec.Struct, frozen=True):
    """Why a record is not used."""

    status: Status
    reason: str
    origin: Origin | None = None
    error: Callable[[str, str], VllmExtError] | None = None
    """Builds the error for a plugin (first argument) that a setting (second) names; ``None`` where the verdict is what
    the user wanted, so that it is a note."""
    is_fault: bool = False
    """Whether it is the record's own: no setting can make it usable."""


class Screen(msgspec.Struct, frozen=True):
    """The settings, and who provides which module: what verdicts depend on."""

    config: Config
    providers: Mapping[str, Provider]

    def judge(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        """The verdict on a record, the first that holds; ``None`` where it may be used.

        Without a rule (for a name in ``VLLM_PLUGINS``) the settings of single kinds are not asked.
        """
        checks = (
            _fault,
            self._unread,
            self._disabled,
            self._safe_mode,
            self._allowed,
            self._permitted,
            self._named_at_all,
        )
        for check in checks:
            if (verdict := check(record, rule)) is not None:
                return verdict
        return self._compatible(record)

    def notes(self, record: ExtensionRecord) -> tuple[str, ...]:
        """What is worth knowing of a record although it may be used."""
        if self.config.settings.host == VLLM:
            return ()
        unmet = unmet_on_vllm(record, self.providers)
        return (f"{unmet}; the host is embedded, so nothing depends on it",) if unmet else ()

    def _unread(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        if self.config.settings.host != VLLM or is_read_by_vllm(record.group):
            return None
        where = self.config.where("host")

        def error(plugin: str, asking: str) -> VllmExtError:
            text = f"{asking} names {plugin!r}, which is in group {record.group!r}, but {where} is 'vllm'"
            return ConfigError(f"{text}, and vLLM does not read that group. Do not name it, or set host: embedded")

        reason = "the host is vllm, which does not read this group"
        return Verdict("available", reason, self.config.origin("host"), error)

    def _disabled(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        if rule is None or rule.disabled_key is None:
            return None
        if not matches_any(value_of(self.config.settings, rule.disabled_key), record):
            return None
        return Verdict("disabled", f"disabled by {rule.disabled_key}", self.config.origin(rule.disabled_key))

    def _safe_mode(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        if not self.config.safe_mode or record.in_tree:
            return None
        return Verdict("disabled", f"{envs.VLLM_EXT_SAFE_MODE} leaves out all out-of-tree plugins", SAFE_MODE_ORIGIN)

    def _allowed(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        refusal = refused_distribution(self.config.settings, record.distribution, record.version)
        if refusal is None or record.in_tree:
            return None
        where = self.config.where(ALLOWED_KEY)

        def error(plugin: str, asking: str) -> VllmExtError:
            text = f"{asking} names {plugin!r} of {record.distribution} {record.version}, but {where} {refusal}"
            return ConfigError(f"{text}. Add {record.distribution!r} there, or do not name the plugin")

        return Verdict("disabled", f"{ALLOWED_KEY} {refusal}", self.config.origin(ALLOWED_KEY), error)

    def _permitted(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        key = rule.permitted_key if rule else None
        permitted = value_of(self.config.settings, key) if key else "all"
        if key is None or permitted == "all" or matches_any(permitted, record):
            return None
        names = ", ".join(map(repr, permitted)) or "nothing"

        def error(plugin: str, asking: str) -> VllmExtError:
            text = f"{asking} names {plugin!r}, but {self.config.where(key)} does not: it allows {names}"
            return ConfigError(f"{text}. Add {record.name!r} there")

        return Verdict("available", f"{key} does not name it", self.config.origin(key), error)

    def _named_at_all(self, record: ExtensionRecord, rule: Rule | None) -> Verdict | None:
        allowed = self.config.allow_list
        if allowed is None or record.in_tree or matches_any(allowed, record):
            return None
        names = ", ".join(map(repr, allowed)) or "nothing"

        def error(plugin: str, asking: str) -> VllmExtError:
            text = f"{asking} names {plugin!r}, but {envs.VLLM_PLUGINS} excludes it: it allows {names}"
            return ConfigError(f"{text}. Add {record.name!r} there, or unset it")

        return Verdict("disabled", f"{envs.VLLM_PLUGINS} does not name it", VLLM_PLUGINS_ORIGIN, error)

    def _compatible(self, record: ExtensionRecord) -> Verdict | None:
        unmet = unmet_on_vllm_ext(record)
        if unmet is None and self.config.settings.host == VLLM:
            unmet = unmet_on_vllm(record, self.providers)
        if unmet is None:
            return None

        def error(plugin: str, asking: str) -> VllmExtError:
            text = f"plugin {record}, which {asking} names, cannot be used: {record.distribution} {unmet}"
            return IncompatiblePlugin(f"{text}. Install versions that fit, or do not name the plugin", plugin=plugin)

        return Verdict("incompatible", unmet, None, error, is_fault=True)


def refused_distribution(settings: Settings, distribution: str, version: str) -> str | None:
    """How ``allow_distributions`` refuses a distribution, as the rest of a sentence; ``None`` where it does not.

    What comes with vllm_ext is always allowed.
    """
    allowed = settings.allow_distributions
    if allowed is None or distribution == IN_TREE_DISTRIBUTION:
        return None
    same_name = [r for r in map(parse_allowed, allowed) if r and canonicalize_name(r.name) == distribution]
    if any(is_met(requirement, version) for requirement in same_name):
        return None
    if same_name:
        return f"lists {', '.join(map(str, same_name))}, and {version} is installed"
    return f"does not list {distribution}"


def parse_allowed(text: str) -> Requirement | None:
    """An element of ``allow_distributions``: a name, with a version where one is given; ``None`` if it is neither."""
    requirement = parse_requirement(text)
    has_more = requirement and (requirement.url or requirement.marker or requirement.extras)
    return None if has_more else requirement


def _fault(record: ExtensionRecord, rule: Any) -> Verdict | None:
    """What no setting can mend."""
    if record.shadowed_by is not None:
        reason = f"{record.shadowed_by} comes first on the path and hides this distribution"
        return Verdict("shadowed", reason, is_fault=True)
    if record.fault is not None:

        def error(plugin: str, asking: str) -> VllmExtError:
            return PluginLoadError(f"plugin {record}, named in {asking}, cannot be used: {record.fault}", plugin=plugin)

        return Verdict("invalid", record.fault, None, error, is_fault=True)
    return None


def check_allowed_distributions(config: Config) -> list[VllmExtError]:
    """Elements of ``allow_distributions`` that are not of its form."""
    where = config.where(ALLOWED_KEY)
    wrong = [text for text in config.settings.allow_distributions or () if parse_allowed(text) is None]
    return [ConfigError(f"{where} holds {text!r}; an element is a name, such as acme, or acme==1.2") for text in wrong]


def note_absent_distributions(
    config: Config, records: Iterable[ExtensionRecord], providers: Mapping[str, Provider]
) -> list[str]:
    """Elements of ``allow_distributions`` that admit nothing: with a slip in one, the plugins meant stay off."""
    plugins = {record.distribution for record in records} - {IN_TREE_DISTRIBUTION}
    known = plugins | {provider.distribution for provider in providers.values()} | {IN_TREE_DISTRIBUTION}
    listed = [(text, parse_allowed(text)) for text in config.settings.allow_distributions or ()]
    where = config.where(ALLOWED_KEY)
    return [
        f"{where} lists {text!r}, and no plugin that is installed, nor a class path in the settings, is of that "
        f"distribution{did_you_mean(requirement.name, known)}; plugins are of: {listing(plugins)}"
        for text, requirement in dict(listed).items()
        if requirement is not None and canonicalize_name(requirement.name) not in known
    ]


def check_host(config: Config, providers: Mapping[str, Provider]) -> list[VllmExtError]:
    """That the host is there."""
    if config.settings.host != VLLM or VLLM in providers:
        return []
    text = f"{config.where('host')} is 'vllm', and no installed distribution provides it"
    return [ConfigError(f"{text}; install vLLM, or set host: embedded")]
