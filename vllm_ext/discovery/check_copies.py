"""Findings on distributions that are on the path more than once: which one counts, and what is lost by that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from vllm_ext.discovery.findings import Finding, Severity
from vllm_ext.discovery.folders import MetadataFolder
from vllm_ext.discovery.metadata import editable_project, is_host
from vllm_ext.discovery.records import ExtensionRecord


def check_copies(folders: Sequence[MetadataFolder], records: Iterable[ExtensionRecord]) -> Iterator[Finding]:
    """Findings on the folders of one distribution, of which the first hides the others."""
    # Folders without METADATA hide nothing and are findings of their own.
    winner, *hidden = [folder for folder in folders if not folder.is_empty] or folders
    if not hidden:
        return
    locations = {folder.location for folder in folders}
    declared = [record for record in records if record.location in locations]
    matters = bool(declared) or is_host(winner.distribution)
    for other in hidden:
        yield from _check_pair(winner, other, _lost(winner, other, declared), matters)


def _check_pair(winner: MetadataFolder, hidden: MetadataFolder, lost: list[str], matters: bool) -> Iterator[Finding]:
    same_version = _version(winner) == _version(hidden)
    losses = f"; lost by that: {', '.join(lost)}" if lost else ""
    if same_version and _is_in_project_of(hidden, winner):
        # The usual two records of an editable installation.
        if lost:
            yield _out_of_date(winner, hidden, losses)
        return
    if same_version and not lost and _is_in_project_of(winner, hidden):
        return
    severity: Severity = "warning" if matters and (lost or not same_version) else "note"
    text = f"{_described(winner)} comes first and hides {_described(hidden)}{losses}"
    if winner.is_egg_info and not hidden.is_egg_info:
        remedy = f"Delete {winner.location}, or install its project: pip install -e {os.path.dirname(winner.location)}."
        yield Finding(severity, "stale-egg-info", winner.distribution, f"the egg-info of {text}", remedy)
    else:
        yield Finding(severity, "shadowed-distribution", winner.distribution, text, _remedy(winner, hidden))


def _out_of_date(winner: MetadataFolder, hidden: MetadataFolder, losses: str) -> Finding:
    text = f"the editable {_described(winner)} is older than its project, which says more in {hidden.location}{losses}"
    remedy = f"Run pip install -e {editable_project(winner.read('direct_url.json'))} again."
    return Finding("note", "editable-out-of-date", winner.distribution, text, remedy)


def _remedy(winner: MetadataFolder, hidden: MetadataFolder) -> str:
    name = winner.distribution
    if os.path.dirname(winner.location) == os.path.dirname(hidden.location):
        return f"Run pip uninstall {name} twice, then install it once."
    if hidden.is_egg_info:
        return f"Delete {hidden.location} if its project is not in use."
    return f"Run pip uninstall {name} until nothing is left, then install it once; what pip does not find, delete."


def _lost(winner: MetadataFolder, hidden: MetadataFolder, declared: Iterable[ExtensionRecord]) -> list[str]:
    """Plugins that the hidden folder declares and the winner does not."""
    by_folder: dict[str, set[str]] = {winner.location: set(), hidden.location: set()}
    for record in declared:
        by_folder.setdefault(record.location, set()).add(f"{record.name!r} in {record.group}")
    return sorted(by_folder[hidden.location] - by_folder[winner.location])


def _is_in_project_of(inner: MetadataFolder, editable: MetadataFolder) -> bool:
    """Whether ``inner`` lies in the project that ``editable`` is the editable installation of."""
    project = editable_project(editable.read("direct_url.json"))
    return project is not None and inner.location.startswith(f"{project}/")


def _described(folder: MetadataFolder) -> str:
    return f"{folder.distribution} {_version(folder) or 'without a version'} ({folder.location})"


def _version(folder: MetadataFolder) -> str:
    return folder.version_in(folder.headers())
