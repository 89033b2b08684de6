"""Records and settings become a plan. Pure: nothing is read, imported or logged here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_ext import envs
from vllm_ext.config import Config
from vllm_ext.contracts.groups import KIND_OF_GROUP
from vllm_ext.discovery import ExtensionRecord
from vllm_ext.errors import VllmExtError, did_you_mean
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.kinds import ALLOW_LIST_ORIGIN, KindResolution, fault_of
from vllm_ext.plan.names import matches, not_found
from vllm_ext.plan.plan import Plan
from vllm_ext.plan.rules import RULES


def resolve(records: Iterable[ExtensionRecord], config: Config) -> Plan:
    """Decide on every record.

    A name in the settings that cannot be followed becomes an entry of ``Plan.errors``, so that a listing can still show
    the rest; :meth:`Plan.require_valid` raises it.
    """
    ordered = sorted(records, key=_sort_key)
    decisions: list[Decision] = []
    errors: list[VllmExtError] = []
    notes: list[str] = []
    for rule in RULES:
        resolution = KindResolution(rule, ordered, config)
        decisions += resolution.decisions
        errors += resolution.errors
        notes += resolution.notes
    decisions += [_of_unknown_group(record) for record in ordered if record.group not in KIND_OF_GROUP]
    for decision, error in _unmatched_allowed(ordered, config.allow_list or ()):
        decisions.append(decision)
        errors.append(error)
    return Plan(tuple(decisions), config.settings, tuple(errors), tuple(notes))


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
    reason = f"vllm_ext has no group {record.group!r}{did_you_mean(record.group, KIND_OF_GROUP)}"
    return Decision(record.group, record.name, None, "unknown", reason, record)


def _unmatched_allowed(
    records: Sequence[ExtensionRecord], names: Sequence[str]
) -> Iterable[tuple[Decision, VllmExtError]]:
    """Names in VLLM_PLUGINS that no usable plugin has."""
    usable = [record for record in records if record.group in KIND_OF_GROUP and fault_of(record) is None]
    for name in names:
        if not any(matches(name, record) for record in usable):
            reason = f"{envs.VLLM_PLUGINS} names it, and no plugin that can be used has that name"
            error = not_found(name, "plugin", envs.VLLM_PLUGINS, usable, records)
            yield Decision("", name, None, "missing", reason, origin=ALLOW_LIST_ORIGIN, named=True), error
