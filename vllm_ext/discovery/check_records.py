"""Findings on declared plugins taken together. Pure: records in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from vllm_ext.contracts.groups import KIND_OF_GROUP
from vllm_ext.discovery.findings import Finding
from vllm_ext.discovery.records import ExtensionRecord


def check_records(records: Iterable[ExtensionRecord]) -> Iterator[Finding]:
    """Findings on names and targets that are there more than once.

    Records that are hidden or faulty do not count: they cannot be loaded.
    """
    usable = [record for record in records if record.fault is None and record.shadowed_by is None]
    yield from _check_names_between_distributions(usable)
    yield from _check_names_within_distributions(usable)
    yield from _check_targets(usable)


def _check_names_between_distributions(records: Sequence[ExtensionRecord]) -> Iterator[Finding]:
    known = [record for record in records if record.group in KIND_OF_GROUP]
    for same in _grouped(known, lambda record: (KIND_OF_GROUP[record.group].key, record.name)):
        by_distribution = {record.distribution: record for record in same}
        if len(by_distribution) < 2:
            continue
        kind, name = KIND_OF_GROUP[same[0].group], same[0].name
        where = " and ".join(_whereabouts(record) for record in by_distribution.values())
        choices = " or ".join(f'"{distribution}:{name}"' for distribution in by_distribution)
        text = f"the {kind.title} plugin {name!r} is declared by {where}"
        yield Finding("warning", "ambiguous-name", name, text, f"Write {choices} in the settings.")


def _check_names_within_distributions(records: Sequence[ExtensionRecord]) -> Iterator[Finding]:
    for same in _grouped(records, lambda record: (record.distribution, record.group, record.name)):
        if len(same) > 1:
            first = same[0]
            values = " and ".join(repr(record.value) for record in same)
            text = f"{_whereabouts(first)} declares {first.name!r} in {first.group} with the targets {values}"
            remedy = f"Ask the authors of {first.distribution} to give each target a name of its own."
            yield Finding("warning", "name-with-two-targets", first.name, text, remedy)


def _check_targets(records: Sequence[ExtensionRecord]) -> Iterator[Finding]:
    for same in _grouped(records, lambda record: (record.group, _target(record))):
        by_name = {record.name: record for record in same}
        if len(by_name) < 2:
            continue
        group, target = same[0].group, _target(same[0])
        where = " and ".join(f"{record.name!r} of {_whereabouts(record)}" for record in by_name.values())
        surplus = list(by_name)[-1]
        text = f"{target!r} is the target of more than one name in {group}: {where}"
        remedy = f"Disable all but one of them in the settings, such as {surplus!r}."
        yield Finding("warning", "repeated-target", target, text, remedy)


def _grouped(
    records: Iterable[ExtensionRecord], key: Callable[[ExtensionRecord], Hashable]
) -> Iterable[list[ExtensionRecord]]:
    groups: dict[Hashable, list[ExtensionRecord]] = {}
    for record in sorted(records, key=lambda record: (record.distribution, record.group, record.name, record.value)):
        groups.setdefault(key(record), []).append(record)
    return groups.values()


def _target(record: ExtensionRecord) -> str:
    """The value without blanks and without the extras that it asks for."""
    return "".join(record.value.partition("[")[0].split())


def _whereabouts(record: ExtensionRecord) -> str:
    return f"{record.distribution} {record.version} ({record.location})"
