"""Decisions on the plugins of one kind."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_ext import envs
from vllm_ext.config import Origin
from vllm_ext.contracts.groups import is_read_by_vllm
from vllm_ext.discovery import ExtensionRecord
from vllm_ext.errors import ConfigError, VllmExtError, did_you_mean
from vllm_ext.plan.decisions import Decision, Status
from vllm_ext.plan.names import ambiguous, matches, matches_any, not_found, tell_apart
from vllm_ext.plan.requirements import VLLM
from vllm_ext.plan.rules import Rule, value_of
from vllm_ext.plan.screen import SAFE_MODE_ORIGIN, VLLM_PLUGINS_ORIGIN, Screen, Verdict


class KindResolution:
    """One decision for each of ``records`` that is of the rule's kind, and what is wrong with the names asked for."""

    def __init__(self, rule: Rule, records: Sequence[ExtensionRecord], screen: Screen) -> None:
        self.rule = rule
        self.screen = screen
        self.config = screen.config
        self.errors: list[VllmExtError] = []
        self._odd: list[str] = []
        self._turned_off: list[str] = []
        """Names that are asked for, and turned off elsewhere."""
        self._all_records = records
        self._records = [record for record in records if record.group in rule.kind.groups]
        self._verdicts: dict[ExtensionRecord, Verdict] = {}
        self._chosen: list[Decision] = []
        self._rest: list[Decision] = []
        self._open: list[ExtensionRecord] = []
        self._open_by_name: dict[str, list[ExtensionRecord]] = {}
        self._screen_records()
        self._note_disabled_names()
        self._note_emptied()
        self._check_permitted_names()
        self._take()

    @property
    def decisions(self) -> list[Decision]:
        """What is used in its order of use, then the rest by distribution and name."""
        return self._chosen + sorted(self._rest, key=lambda d: (d.distribution, d.name))

    @property
    def notes(self) -> list[str]:
        """What is odd and not wrong."""
        return self._odd + self._turned_off

    def _screen_records(self) -> None:
        """Set aside what no name in the settings can bring back."""
        for record in self._records:
            if (verdict := self.screen.judge(record, self.rule)) is None:
                self._open.append(record)
                self._open_by_name.setdefault(record.name, []).append(record)
                continue
            self._verdicts[record] = verdict
            self._reject(record, verdict.status, verdict.reason, verdict.origin)

    def _take(self) -> None:
        asked = value_of(self.config.settings, self.rule.asked_key)
        if asked is None or self._is_unread():
            self._take_named([])
        elif asked == self.rule.everything or self._is_opened_by_allow_list(asked):
            self._take_all()
        else:
            self._take_named([asked] if isinstance(asked, str) else asked)

    def _is_unread(self) -> bool:
        """Whether the host has plugins of other kinds only."""
        return self.config.settings.host == VLLM and not any(map(is_read_by_vllm, self.rule.kind.groups))

    def _is_opened_by_allow_list(self, asked: object) -> bool:
        """Of a kind that is off by default, VLLM_PLUGINS turns on what it names, unless the user asked otherwise."""
        by_default = self.config.origin(self.rule.asked_key).kind == "default"
        return asked == [] and by_default and self.config.allow_list is not None

    def _take_all(self) -> None:
        if self.rule.status == "candidate" and not self._open:
            self._odd.append("no platform is left that may be used, so that no engine can be built")
        key = self.rule.in_tree_off_key
        off_key = key if key is not None and value_of(self.config.settings, key) else None
        for record in self._open:
            twins = self._twins(record)
            named = matches_any(self.config.allow_list or (), record)
            if len(twins) > 1:
                self._reject_duplicate(record, twins)
                if record is twins[0]:
                    self._report_duplicate(twins, named)
            elif named:
                self._choose(record, f"named in {envs.VLLM_PLUGINS}", VLLM_PLUGINS_ORIGIN, named=True)
            elif off_key is not None and record.in_tree:
                self._reject(record, "available", f"{off_key} is true", self.config.origin(off_key))
            else:
                reason = f"{self.rule.asked_key} is {self.rule.everything}"
                self._choose(record, reason, self.config.origin(self.rule.asked_key), named=False)

    def _take_named(self, references: Sequence[str]) -> None:
        origin = self.config.origin(self.rule.asked_key)
        taken: list[ExtensionRecord] = []
        for reference in references:
            if reference == self.rule.everything:
                where = self.config.where(self.rule.asked_key)
                self.errors.append(
                    ConfigError(f"{where} lists {reference!r}, which stands alone; in a list, give names")
                )
                continue
            found = self._find_one(reference, self.rule.asked_key)
            if found is not None and found not in taken:
                taken.append(found)
                self._choose(found, f"named in {self.rule.asked_key}", origin, named=True)
        is_required = bool(references) or self.rule.status == "candidate"
        is_required &= not (self.config.safe_mode and self.rule.is_dispensable)
        if self.rule.kind.pattern == "driver" and is_required and not taken and not self.errors:
            self.errors.append(self._nothing_left(references))
        for record in self._open:
            twins = self._twins(record)
            if record in taken:
                continue
            if len(twins) > 1 and not any(twin in taken for twin in twins):
                self._reject_duplicate(record, twins)
            else:
                self._reject(record, "available", f"{self.rule.asked_key} does not name it", origin)

    def _find_one(self, reference: str, key: str) -> ExtensionRecord | None:
        """The usable record that ``reference``, in the setting ``key``, stands for; else an error or a note."""
        found = [record for record in self._open if matches(reference, record)]
        if len(found) > 1 and self.config.origin(key).kind == "default":
            # Nobody named it: what somebody else calls the same does not stop the start.
            found = [record for record in found if record.in_tree] or found
        if len(found) > 1:
            self.errors.append(ambiguous(reference, self.rule.kind.title, found, self.config.where(key)))
        elif not found:
            self._explain_absence(reference, key)
        return found[0] if len(found) == 1 else None

    def _explain_absence(self, reference: str, key: str) -> None:
        """Say why a name has no usable plugin; that the user turned it off is an answer, and no error."""
        where = self.config.where(key)
        same_name = [record for record in self._records if matches(reference, record)]
        verdicts = sorted((self._verdicts[record] for record in same_name), key=lambda verdict: verdict.is_fault)
        for verdict in verdicts:
            if verdict.error is not None:
                self.errors.append(verdict.error(reference, where))
                return
            if verdict.status == "disabled":
                origin = "" if verdict.origin is SAFE_MODE_ORIGIN else f" ({verdict.origin})"
                self._turned_off.append(f"{where} names {reference!r}, which is not used: {verdict.reason}{origin}")
                return
        offered = [r for r in self._records if r not in self._verdicts or not self._verdicts[r].is_fault]
        what = f"{self.rule.kind.title} plugin"
        self.errors.append(not_found(reference, what, where, offered, self._all_records))
        self._add_missing(reference, key, "no installed distribution provides it")

    def _nothing_left(self, references: Sequence[str]) -> ConfigError:
        where = self.config.where(self.rule.asked_key)
        if not references:
            return ConfigError(f"{where} is an empty list; give auto, a name, or a list of names")
        reasons, self._turned_off = ". ".join(self._turned_off), []
        return ConfigError(f"{reasons}. That leaves no {self.rule.kind.title} to be used; change one of the two")

    def _check_permitted_names(self) -> None:
        """A name that may be used and is not there is an error like one that is asked for."""
        permitted = value_of(self.config.settings, self.rule.permitted_key) if self.rule.permitted_key else "all"
        for reference in [] if permitted == "all" else permitted:
            self._find_one(reference, str(self.rule.permitted_key))

    def _note_disabled_names(self) -> None:
        """A name that is disabled and not there is worth a word: with a slip in it, the plugin meant is still on."""
        key = self.rule.disabled_key
        for name in value_of(self.config.settings, key) if key else ():
            if not any(matches(name, record) for record in self._records):
                hint = did_you_mean(name, {record.name for record in self._records})
                self._odd.append(f"{self.config.where(str(key))} disables {name!r}, which is not installed{hint}")
                self._add_missing(name, str(key), f"disabled and not installed{hint}")

    def _note_emptied(self) -> None:
        excluded = [record for record, verdict in self._verdicts.items() if verdict.origin is VLLM_PLUGINS_ORIGIN]
        is_asked = bool(value_of(self.config.settings, self.rule.asked_key))
        if excluded and is_asked and all(record.in_tree for record in self._open):
            names = ", ".join(sorted(repr(record.name) for record in excluded))
            self._odd.append(
                f"{envs.VLLM_PLUGINS} leaves no out-of-tree {self.rule.kind.title} plugin; it excludes {names}"
            )

    def _report_duplicate(self, twins: Sequence[ExtensionRecord], named: bool) -> None:
        kind, name = self.rule.kind.title, twins[0].name
        if named:
            self.errors.append(ambiguous(name, kind, twins, envs.VLLM_PLUGINS))
        else:
            by_disabling = self.rule.kind.pattern != "driver"  # A list with one of them would be all that is loaded.
            key = self.rule.disabled_key if by_disabling else self.rule.asked_key
            advice = tell_apart(twins, str(key), by_disabling=by_disabling)
            self._odd.append(f"{kind} plugin {name!r} exists more than once, and none is used: {advice}")

    def _twins(self, record: ExtensionRecord) -> list[ExtensionRecord]:
        """All that have the record's group and name, itself among them.

        A kind may have two groups: what one distribution calls the same in both, no reference tells apart either.
        """
        same_name = self._open_by_name[record.name]
        return [r for r in same_name if r.group == record.group or r.distribution == record.distribution]

    def _choose(self, record: ExtensionRecord, reason: str, origin: Origin, *, named: bool) -> None:
        notes = self.screen.notes(record)
        self._chosen.append(self._decision(record, self.rule.status, reason, origin, named, notes))

    def _reject(self, record: ExtensionRecord, status: Status, reason: str, origin: Origin | None) -> None:
        self._rest.append(self._decision(record, status, reason, origin))

    def _decision(
        self,
        record: ExtensionRecord,
        status: Status,
        reason: str,
        origin: Origin | None,
        named: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Decision:
        return Decision(record.group, record.name, self.rule.kind.key, status, reason, record, origin, named, notes)

    def _reject_duplicate(self, record: ExtensionRecord, twins: Sequence[ExtensionRecord]) -> None:
        owners = ", ".join(sorted({twin.distribution for twin in twins}))
        where = "group" if len({twin.group for twin in twins}) == 1 else "kind"
        self._reject(record, "duplicate", f"{len(twins)} plugins of this {where} have that name; from {owners}", None)

    def _add_missing(self, name: str, key: str, reason: str) -> None:
        group, kind, origin = self.rule.kind.groups[0], self.rule.kind.key, self.config.origin(key)
        self._rest.append(Decision(group, name, kind, "missing", f"{key} names it: {reason}", origin=origin))
