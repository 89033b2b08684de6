"""The scan of the path: which distributions are there, and which plugins they declare.

Nothing is cached, and only ``entry_points.txt`` files that mention one of our prefixes are parsed, so that a thousand
other distributions cost one directory listing and one small read each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vllm_ext.contracts.groups import GROUP_PREFIXES
from vllm_ext.discovery.folders import MetadataFolder, find_all, ordered, path_entries
from vllm_ext.discovery.metadata import host_requirements, is_editable, parse_entry_points
from vllm_ext.discovery.records import ExtensionRecord

_MENTIONS = tuple(prefix.encode() for prefix in GROUP_PREFIXES)


def scan(path: Sequence[str] | None = None) -> list[ExtensionRecord]:
    """Records of all plugins that the distributions on ``path`` (default ``sys.path``) declare.

    Only metadata is read; no plugin is imported. A distribution that an earlier path entry hides is in the list, marked
    as shadowed. Metadata that cannot be read gives a record with a fault, or none; it never raises.
    """
    found = list(find_all(path_entries(path)))
    # A distribution without plugins matters only where it hides one of the same name that has some.
    with_plugins = {metadata.distribution for _, metadata in found if _mentions_us(metadata.read("entry_points.txt"))}
    return read_records(ordered(ranked for ranked in found if ranked[1].distribution in with_plugins))


def read_records(folders: Iterable[MetadataFolder]) -> list[ExtensionRecord]:
    """What the folders declare; of one distribution the first folder hides those after it."""
    winners: dict[str, str] = {}
    records: list[ExtensionRecord] = []
    for metadata in folders:
        winner = winners.setdefault(metadata.distribution, metadata.location)
        records += _read_folder(metadata, None if winner == metadata.location else winner)
    return records


def _mentions_us(data: bytes | None) -> bool:
    return data is not None and b"vllm" in data and any(prefix in data for prefix in _MENTIONS)


def _read_folder(metadata: MetadataFolder, shadowed_by: str | None) -> Iterator[ExtensionRecord]:
    data = metadata.read("entry_points.txt")
    if data is None or not _mentions_us(data):
        return
    declared = [entry for entry in parse_entry_points(data) if entry[0].startswith(GROUP_PREFIXES)]
    if not declared:
        return
    headers = metadata.headers()
    version = metadata.version_in(headers)
    requires = host_requirements(metadata.requirements_in(headers))
    # An egg-info without a version in its name lies in a source tree.
    editable = is_editable(metadata.read("direct_url.json")) or (metadata.is_egg_info and not metadata.version)
    for group, name, value, fault in declared:
        yield ExtensionRecord(
            group=group,
            name=name,
            value=value,
            distribution=metadata.distribution,
            version=version,
            location=metadata.location,
            editable=editable,
            requires=requires,
            fault=fault,
            shadowed_by=shadowed_by,
        )
