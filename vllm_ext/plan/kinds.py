"""Decisions on the plugins of one kind."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_ext import envs
from vllm_ext.config import Config, Origin
from vllm_ext.discovery import ExtensionRecord
from vllm_ext.errors import ConfigError, PluginLoadError, VllmExtError, did_you_mean
from vllm_ext.plan.decisions import Decision, Status
from vllm_ext.plan.names import ambiguous, matches, matches_any, not_found, tell_apart
from vllm_ext.plan.rules import Rule, value_of

ALLOW_LIST_ORIGIN = Origin("environment", envs.VLLM_PLUGINS)


def fault_of(record: ExtensionRecord) -> tuple[Status, str] | None:
    """Status and reason of a record that no setting can make usable."""
    if record.shadowed_by is not None:
        return "shadowed", f"{record.shadowed_by} comes first on the path and hides this distribution"
    if record.fault is not None:
        return "invalid", record.fault
    return None


class KindResolution:
    """One decision for each of ``records`` that is of the rule's kind, and what is wrong with the names asked for."""

    def __init__(self, rule: Rule, records: Sequence[ExtensionRecord], config: Config) -> None:
        self.rule = rule
        self.config = config
        self.errors: list[VllmExtError] = []
        self.notes: list[str] = []
        self._all_records = records
        self._records = [record for record in records if record.group in rule.kind.groups]
        self._disabled_names = value_of(config.settings, rule.disabled_key) if rule.disabled_key else []
        self._chosen: list[Decision] = []
        self._rest: list[Decision] = []
        self._open: list[ExtensionRecord] = []
        self._screen()
        self._note_disabled_names()
        self._note_emptied()
        asked = value_of(config.settings, rule.asked_key)
        if asked == rule.everything:
            self._take_all()
        else:
            self._take_named([asked] if isinstance(asked, str) else asked)

    @property
    def decisions(self) -> list[Decision]:
        """What is used in its order of use, then the rest by distribution and name."""
        return self._chosen + sorted(self._rest, key=lambda d: (d.distribution, d.name))

    def _screen(self) -> None:
        """Set aside what no name in the settings can bring back."""
        for record in self._records:
            if (fault := fault_of(record)) is not None:
                self._reject(record, *fault, origin=None)
            elif matches_any(self._disabled_names, record):
                key = str(self.rule.disabled_key)
                self._reject(record, "disabled", f"disabled by {key}", self.config.origin(key))
            elif self._is_excluded(record):
                self._reject(record, "disabled", f"{envs.VLLM_PLUGINS} does not name it", ALLOW_LIST_ORIGIN)
            else:
                self._open.append(record)

    def _take_all(self) -> None:
        for record in self._open:
            twins = self._twins(record)
            named = self._is_allowed_by_name(record)
            if len(twins) > 1:
                self._reject_duplicate(record, twins)
                if record is twins[0]:
                    self._report_duplicate(twins, named)
            elif named:
                self._choose(record, f"named in {envs.VLLM_PLUGINS}", ALLOW_LIST_ORIGIN, named=True)
            else:
                reason = f"{self.rule.asked_key} is {self.rule.everything}"
                self._choose(record, reason, self.config.origin(self.rule.asked_key), named=False)

    def _take_named(self, references: Sequence[str]) -> None:
        origin = self.config.origin(self.rule.asked_key)
        taken: list[ExtensionRecord] = []
        for reference in references:
            found = [record for record in self._open if matches(reference, record)]
            if len(found) > 1:
                self.errors.append(ambiguous(reference, self.rule.kind.key, found, self._where(self.rule.asked_key)))
            elif not found:
                self._explain_absence(reference)
            elif found[0] not in taken:
                taken += found
                self._choose(found[0], f"named in {self.rule.asked_key}", origin, named=True)
        if self.rule.kind.pattern == "driver" and not taken and not self.errors:
            self.errors.append(self._nothing_left(references))
        for record in self._open:
            twins = self._twins(record)
            if record in taken:
                continue
            if len(twins) > 1 and not any(twin in taken for twin in twins):
                self._reject_duplicate(record, twins)
            else:
                self._reject(record, "available", f"{self.rule.asked_key} does not name it", origin)

    def _explain_absence(self, reference: str) -> None:
        """Say why a name has no usable plugin; that it is disabled is an answer, and no error."""
        where = self._where(self.rule.asked_key)
        same_name = [record for record in self._records if matches(reference, record)]
        usable = [record for record in same_name if fault_of(record) is None]
        if any(matches_any(self._disabled_names, record) for record in usable):
            disabling = self._where(str(self.rule.disabled_key))
            self.notes.append(f"{where} names {reference!r}, which is not used, since {disabling} disables it")
            return
        if usable:
            self.errors.append(
                ConfigError(
                    f"{where} names {reference!r}, but {envs.VLLM_PLUGINS} excludes it: it allows "
                    f"{', '.join(map(repr, self.config.allow_list or ())) or 'nothing'}. "
                    f"Add {usable[0].name!r} there, or unset it"
                )
            )
            return
        if faulty := [record for record in same_name if record.shadowed_by is None]:
            text = f"{self.rule.kind.key} plugin {faulty[0]}, named in {where}, cannot be used: {faulty[0].fault}"
            self.errors.append(PluginLoadError(text, plugin=reference))
            return
        offered = [record for record in self._records if fault_of(record) is None]
        self.errors.append(not_found(reference, f"{self.rule.kind.key} plugin", where, offered, self._all_records))
        self._add_missing(reference, self.rule.asked_key, "no installed distribution provides it")

    def _nothing_left(self, references: Sequence[str]) -> ConfigError:
        where = self._where(self.rule.asked_key)
        if not references:
            return ConfigError(f"{where} is an empty list; give auto, a name, or a list of names")
        names = ", ".join(map(repr, references))
        return ConfigError(
            f"{where} names {names}, all disabled by {self._where(str(self.rule.disabled_key))}; change one of the two"
        )

    def _note_disabled_names(self) -> None:
        """A name that is disabled and not there is worth a word: with a slip in it, the plugin meant is still on."""
        for name in self._disabled_names:
            if not any(matches(name, record) for record in self._records):
                key = str(self.rule.disabled_key)
                hint = did_you_mean(name, {record.name for record in self._records})
                self.notes.append(f"{self._where(key)} disables {name!r}, which is not installed{hint}")
                self._add_missing(name, key, f"disabled and not installed{hint}")

    def _note_emptied(self) -> None:
        excluded = [record for record in self._records if fault_of(record) is None and self._is_excluded(record)]
        if excluded and all(record.in_tree for record in self._open):
            names = ", ".join(sorted(repr(record.name) for record in excluded))
            self.notes.append(
                f"{envs.VLLM_PLUGINS} leaves no out-of-tree {self.rule.kind.key} plugin; it excludes {names}"
            )

    def _report_duplicate(self, twins: Sequence[ExtensionRecord], named: bool) -> None:
        kind, name = self.rule.kind.key, twins[0].name
        if named:
            self.errors.append(ambiguous(name, kind, twins, envs.VLLM_PLUGINS))
        else:
            self.notes.append(
                f"{kind} plugin {name!r} exists more than once, and none is used: "
                f"{tell_apart(twins, self.rule.asked_key)}"
            )

    def _twins(self, record: ExtensionRecord) -> list[ExtensionRecord]:
        """All that have the record's group and name, itself among them."""
        return [other for other in self._open if (other.group, other.name) == (record.group, record.name)]

    def _is_excluded(self, record: ExtensionRecord) -> bool:
        allowed = self.config.allow_list
        return allowed is not None and not record.in_tree and not matches_any(allowed, record)

    def _is_allowed_by_name(self, record: ExtensionRecord) -> bool:
        return matches_any(self.config.allow_list or (), record)

    def _where(self, key: str) -> str:
        return f"{key} ({self.config.origin(key)})"

    def _choose(self, record: ExtensionRecord, reason: str, origin: Origin, *, named: bool) -> None:
        decision = Decision(
            record.group, record.name, self.rule.kind.key, self.rule.status, reason, record, origin, named
        )
        self._chosen.append(decision)

    def _reject(self, record: ExtensionRecord, status: Status, reason: str, origin: Origin | None) -> None:
        self._rest.append(Decision(record.group, record.name, self.rule.kind.key, status, reason, record, origin))

    def _reject_duplicate(self, record: ExtensionRecord, twins: Sequence[ExtensionRecord]) -> None:
        owners = ", ".join(sorted({twin.distribution for twin in twins}))
        self._reject(record, "duplicate", f"{len(twins)} plugins of this group have that name; from {owners}", None)

    def _add_missing(self, name: str, key: str, reason: str) -> None:
        self._rest.append(
            Decision(
                self.rule.kind.groups[0],
                name,
                self.rule.kind.key,
                "missing",
                f"{key} names it: {reason}",
                origin=self.config.origin(key),
            )
        )
