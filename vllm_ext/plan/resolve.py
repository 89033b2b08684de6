"""Records and settings become a plan. Pure: nothing is read, imported or logged here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_ext import envs
from vllm_ext.config import Config
from vllm_ext.contracts.groups import KIND_OF_GROUP, closest_group
from vllm_ext.discovery import ExtensionRecord, Provider
from vllm_ext.errors import VllmExtError
from vllm_ext.plan.class_paths import check_class_paths
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.kinds import KindResolution
from vllm_ext.plan.names import matches, not_found
from vllm_ext.plan.options import check_options
from vllm_ext.plan.plan import Plan
from vllm_ext.plan.rules import RULES
from vllm_ext.plan.screen import (
    SAFE_MODE_ORIGIN,
    VLLM_PLUGINS_ORIGIN,
    Screen,
    check_allowed_distributions,
    check_host,
    note_absent_distributions,
)

_NOBODY: Mapping[str, Provider] = {}


def resolve(records: Iterable[ExtensionRecord], config: Config, providers: Mapping[str, Provider] = _NOBODY) -> Plan:
    """Decide on every record.

    A name in the settings that cannot be followed becomes an entry of ``Plan.errors``, so that a listing can still show
    the rest; :meth:`Plan.require_valid` raises it.

    Args:
        records: all plugins that are installed.
        config: the settings.
        providers: by module, the distribution that provides it; of those that :func:`modules_in_question`
            names. A module without an entry counts as not installed.
    """
    ordered = sorted(records, key=_sort_key)
    screen = Screen(config, providers)
    decisions: list[Decision] = []
    errors: list[VllmExtError] = []
    notes: list[str] = []
    for rule in RULES:
        resolution = KindResolution(rule, ordered, screen)
        decisions += resolution.decisions
        errors += resolution.errors
        notes += resolution.notes
    decisions += [_of_unknown_group(record) for record in ordered if record.group not in KIND_OF_GROUP]
    for decision, error in (*_unmatched_allowed(ordered, screen), *check_options(ordered, config)):
        decisions.append(decision)
        errors.append(error)
    errors += [*check_allowed_distributions(config), *check_host(config, providers)]
    notes += note_absent_distributions(config, ordered, providers)
    settings = check_class_paths(config, providers, errors, notes)
    return Plan(tuple(decisions), settings, tuple(errors), tuple(notes))


def _sort_key(record: ExtensionRecord) -> tuple[str, ...]:
    """By distribution and name; the rest makes the order independent of that on disk."""
    return (
        record.distribution,
        record.name,
        record.group,
        record.value,
        record.version,
        record.location,
        record.fault or "",
        record.shadowed_by or "",
    )


def _of_unknown_group(record: ExtensionRecord) -> Decision:
    closest = closest_group(record.group)
    hint = f" (did you mean {closest!r}?)" if closest else ""
    reason = f"vllm_ext has no group {record.group!r}{hint}"
    return Decision(record.group, record.name, None, "unknown", reason, record)


def _unmatched_allowed(records: Sequence[ExtensionRecord], screen: Screen) -> Iterator[tuple[Decision, VllmExtError]]:
    """Names in VLLM_PLUGINS that no usable plugin has."""
    if not screen.config.allow_list:
        return
    known = [record for record in records if record.group in KIND_OF_GROUP]
    verdicts = {record: screen.judge(record, None) for record in known}
    for name in screen.config.allow_list:
        found = [verdicts[record] for record in known if matches(name, record)]
        if any(verdict is None or verdict.origin is SAFE_MODE_ORIGIN for verdict in found):
            continue
        refusals = (verdict.error for verdict in found if verdict and verdict.error)
        if (refusal := next(refusals, None)) is not None:
            error = refusal(name, envs.VLLM_PLUGINS)
        else:
            usable = [record for record, verdict in verdicts.items() if not (verdict and verdict.is_fault)]
            error = not_found(name, "plugin", envs.VLLM_PLUGINS, usable, records)
        reason = f"{envs.VLLM_PLUGINS} names it, and no plugin that can be used has that name"
        yield Decision("", name, None, "missing", reason, origin=VLLM_PLUGINS_ORIGIN, named=True), error
