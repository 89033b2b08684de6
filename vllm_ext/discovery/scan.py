"""The scan of the path: which distributions are there, and which plugins they declare.

Nothing is cached, and only ``entry_points.txt`` files that mention one of our prefixes are parsed, so that a thousand
other distributions cost one directory listing and one small read each.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from vllm_ext.contracts.groups import GROUP_PREFIXES
from vllm_ext.discovery.metadata import host_requirements, is_editable, parse_entry_points, parse_headers
from vllm_ext.discovery.records import ExtensionRecord

logger = logging.getLogger(__name__)

_MENTIONS = tuple(prefix.encode() for prefix in GROUP_PREFIXES)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """A distribution's metadata folder, wherever it is kept."""

    distribution: str
    version: str
    location: str
    read: Callable[[str], bytes | None]
    """Content of a file in the folder, ``None`` where there is no such file."""

    @property
    def is_egg_info(self) -> bool:
        return not self.location.endswith(".dist-info")


def scan(path: Sequence[str] | None = None) -> list[ExtensionRecord]:
    """Records of all plugins that the distributions on ``path`` (default ``sys.path``) declare.

    Only metadata is read; no plugin is imported. A distribution that an earlier path entry hides is in the list, marked
    as shadowed. Metadata that cannot be read gives a record with a fault, or none; it never raises.
    """
    entries = list(dict.fromkeys(os.path.realpath(entry) for entry in (sys.path if path is None else path)))
    winners: dict[str, str] = {}
    seen: set[str] = set()
    records: list[ExtensionRecord] = []
    for metadata in _ordered(_find_all(entries)):
        # A finder of somebody else may give once more what lies on the path.
        if metadata.location in seen:
            continue
        seen.add(metadata.location)
        winner = winners.setdefault(metadata.distribution, metadata.location)
        records += _read_records(metadata, None if winner == metadata.location else winner)
    return records


def _find_all(entries: list[str]) -> Iterator[tuple[int, _Metadata]]:
    """Metadata folders with their rank: of two with one rank, which comes first is ours to say."""
    rank = 0
    for finder in sys.meta_path:
        if finder is PathFinder:
            for entry in entries:
                rank += 1
                if os.path.isdir(entry):
                    yield from ((rank, metadata) for metadata in _find_in_folder(entry))
                elif os.path.isfile(entry):
                    yield from ((rank, metadata) for metadata in _find_with(PathFinder, [entry]))
        elif hasattr(finder, "find_distributions"):
            rank += 1
            yield from ((rank, metadata) for metadata in _find_with(finder, entries))


def _ordered(found: Iterable[tuple[int, _Metadata]]) -> list[_Metadata]:
    """In the order in which they hide each other.

    Within one folder: what has metadata before an empty remainder, an installed one before an egg-info, a newer
    version before an older one.
    """
    by_name: dict[str, list[tuple[int, _Metadata]]] = {}
    for rank, metadata in found:
        by_name.setdefault(metadata.distribution, []).append((rank, metadata))
    ordered = []
    for name in sorted(by_name):
        same = by_name[name]
        if len(same) > 1:
            same.sort(key=lambda ranked: ranked[1].location)
            same.sort(key=lambda ranked: _version_key(ranked[1].version), reverse=True)
            same.sort(key=lambda ranked: (_is_empty(ranked[1]), ranked[0], ranked[1].is_egg_info))
        ordered += [metadata for _, metadata in same]
    return ordered


def _is_empty(metadata: _Metadata) -> bool:
    return metadata.read("METADATA") is None and metadata.read("PKG-INFO") is None


def _version_key(version: str) -> tuple[bool, Version]:
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, Version("0")


def _find_in_folder(folder: str) -> Iterator[_Metadata]:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    if folder.endswith(".egg"):
        # An unpacked egg is a path entry of its own, named for the distribution.
        stem = os.path.basename(folder).removesuffix(".egg")
        names = [name for name in names if name != "EGG-INFO"]
        yield _metadata_folder(os.path.join(folder, "EGG-INFO"), stem)
    for name in names:
        # pip leaves "~ame-1.0.dist-info" behind when it is interrupted.
        if name.endswith((".dist-info", ".egg-info")) and not name.startswith("~"):
            yield _metadata_folder(os.path.join(folder, name), name[: name.rindex(".")])


def _metadata_folder(location: str, stem: str) -> _Metadata:
    name, _, rest = stem.partition("-")

    def read(filename: str) -> bytes | None:
        try:
            with open(f"{location}/{filename}", "rb", buffering=0) as file:
                return file.read()
        except OSError:
            return None

    return _Metadata(canonicalize_name(name), rest.partition("-")[0], location, read)


def _find_with(finder: object, entries: list[str]) -> Iterator[_Metadata]:
    """What a finder of somebody else, or importlib's own in a zip file, offers."""
    context = importlib.metadata.DistributionFinder.Context(path=entries)
    try:
        for distribution in finder.find_distributions(context):  # type: ignore[attr-defined]
            name = distribution.metadata["Name"]
            if name:
                yield _adapted(distribution, name)
    except Exception as error:  # noqa: BLE001 - a finder is somebody else's code
        logger.warning("metadata finder %r failed and is left out: %s", finder, error)


def _adapted(distribution: importlib.metadata.Distribution, name: str) -> _Metadata:
    def read(filename: str) -> bytes | None:
        try:
            text = distribution.read_text(filename)
        except Exception as error:  # noqa: BLE001 - a finder is somebody else's code
            logger.warning("%s of distribution %r cannot be read and is left out: %s", filename, name, error)
            return None
        return None if text is None else text.encode()

    location = str(getattr(distribution, "_path", f"{type(distribution).__module__}:{name}")).rstrip("/")
    return _Metadata(canonicalize_name(name), distribution.version or "", location, read)


def _read_records(metadata: _Metadata, shadowed_by: str | None) -> Iterator[ExtensionRecord]:
    data = metadata.read("entry_points.txt")
    if data is None or not any(prefix in data for prefix in _MENTIONS):
        return
    declared = [entry for entry in parse_entry_points(data) if entry[0].startswith(GROUP_PREFIXES)]
    if not declared:
        return
    headers = parse_headers((metadata.read("METADATA") or metadata.read("PKG-INFO") or b"").decode("utf-8", "replace"))
    version = headers.get("Version", [metadata.version])[0]
    requires = host_requirements(headers.get("Requires-Dist", []))
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
