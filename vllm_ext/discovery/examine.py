"""The thorough pass over the installation: reads more than the scan does, and says what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from vllm_ext.discovery.check_copies import check_copies
from vllm_ext.discovery.check_declarations import check_declarations
from vllm_ext.discovery.check_folder import check_folder, leftover
from vllm_ext.discovery.check_records import check_records
from vllm_ext.discovery.findings import Finding
from vllm_ext.discovery.folders import MetadataFolder, find_all, find_leftovers, ordered, path_entries
from vllm_ext.discovery.scan import read_records


def examine(path: Sequence[str] | None = None) -> list[Finding]:
    """Everything that looks wrong with the distributions on ``path`` (default ``sys.path``), errors first.

    Only metadata is read; nothing is imported, and nothing on disk makes it raise.
    """
    entries = path_entries(path)
    folders = ordered(find_all(entries))
    findings = {leftover(location) for entry in entries for location in find_leftovers(entry)}
    findings.update(_check(folders))
    return sorted(findings, key=Finding.sort_key)


def _check(folders: list[MetadataFolder]) -> Iterator[Finding]:
    records = read_records(folders)
    yield from check_records(records)
    ours = {record.location for record in records}
    for metadata in folders:
        yield from check_folder(metadata, declares=metadata.location in ours)
        yield from check_declarations(metadata)
    for _, same in groupby(folders, key=lambda metadata: metadata.distribution):
        yield from check_copies(list(same), records)
