"""Metadata folders: where the distributions on a path keep what they say about themselves."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import PathFinder
from typing import NamedTuple

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from vllm_ext.discovery.metadata import parse_headers, parse_requires

logger = logging.getLogger(__name__)

_SUFFIXES = (".dist-info", ".egg-info")
_READ_ONLY = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))
"""Without the last, a FIFO would keep waiting who opens it."""
_CHUNK = 1 << 16


class MetadataFolder(NamedTuple):
    """A distribution's metadata folder, wherever it is kept. A tuple, since a scan makes thousands of them."""

    distribution: str
    """Canonical name."""
    version: str
    """As in the folder's name; empty where that has none."""
    location: str
    reader: Callable[[str, str], bytes | None]
    """Reads a file of it, by location and name."""

    def read(self, filename: str) -> bytes | None:
        """Content of a file in the folder, ``None`` where there is no such file."""
        return self.reader(self.location, filename)

    @property
    def is_egg_info(self) -> bool:
        """Whether setuptools wrote it beside the sources, or it is of the kind that came before dist-info."""
        return not self.location.endswith(".dist-info")

    @property
    def is_empty(self) -> bool:
        """Whether it lacks the file that makes it a distribution. distutils wrote that in the folder's place."""
        in_folder = self.read("METADATA") is not None or self.read("PKG-INFO") is not None
        return not in_folder and not os.path.isfile(self.location)

    def version_in(self, headers: dict[str, list[str]]) -> str:
        """The version in what :meth:`headers` gave, else that of the folder's name."""
        return headers.get("Version", [self.version])[0]

    def headers(self) -> dict[str, list[str]]:
        """Fields of METADATA or PKG-INFO; empty where neither can be read."""
        data = self.read("METADATA") or self.read("PKG-INFO") or b""
        return parse_headers(data.decode("utf-8", "replace"))

    def requirements_in(self, headers: dict[str, list[str]]) -> list[str]:
        """What the distribution requires, by what :meth:`headers` gave; older egg-infos have it in requires.txt."""
        listed = headers.get("Requires-Dist", [])
        if listed or not self.is_egg_info:
            return listed
        return list(parse_requires((self.read("requires.txt") or b"").decode("utf-8", "replace")))


def path_entries(path: Sequence[str] | None) -> list[str]:
    """The entries of ``path`` (default ``sys.path``) as real paths, each once, in order."""
    return list(dict.fromkeys(_real_paths(sys.path if path is None else path)))


def _real_paths(path: Sequence[str]) -> Iterator[str]:
    for entry in path:
        try:
            yield os.fsdecode(os.path.realpath(entry))
        except (TypeError, ValueError, OSError):
            # sys.path may hold anything; the import system leaves out what is no path, too.
            continue


def find_all(entries: list[str]) -> Iterator[tuple[int, MetadataFolder]]:
    """Metadata folders with their rank: of two with one rank, which comes first is ours to say."""
    rank = 0
    for finder in sys.meta_path:
        if finder is PathFinder:
            for entry in entries:
                rank += 1
                yield from ((rank, metadata) for metadata in find_in_entry(entry))
        elif hasattr(finder, "find_distributions"):
            rank += 1
            yield from ((rank, metadata) for metadata in _find_with(finder, entries))


def find_in_entry(entry: str) -> Iterator[MetadataFolder]:
    """Metadata folders directly in a path entry: a folder or a zip file."""
    if os.path.isdir(entry):
        yield from _find_in_folder(entry)
    elif os.path.isfile(entry):
        yield from _find_with(PathFinder, [entry])


def find_elsewhere(entries: list[str]) -> Iterator[MetadataFolder]:
    """What finders of somebody else know of, apart from the path."""
    for finder in sys.meta_path:
        if finder is not PathFinder and hasattr(finder, "find_distributions"):
            yield from _find_with(finder, entries)


def ordered(found: Iterable[tuple[int, MetadataFolder]]) -> list[MetadataFolder]:
    """By name; folders of one name in the order in which they hide each other, each location once.

    What has metadata comes before empty remainders, wherever those lie; then the path decides. Within one path entry an
    installed one comes before an egg-info, and a newer version before an older one.
    """
    by_name: dict[str, list[tuple[int, MetadataFolder]]] = {}
    seen = set()
    for rank, metadata in found:
        # A finder of somebody else may give once more what lies on the path.
        if metadata.location not in seen:
            seen.add(metadata.location)
            by_name.setdefault(metadata.distribution, []).append((rank, metadata))
    in_order = []
    for name in sorted(by_name):
        same = by_name[name]
        if len(same) > 1:
            same.sort(key=lambda ranked: ranked[1].location)
            same.sort(key=lambda ranked: _version_key(ranked[1].version), reverse=True)
            same.sort(key=lambda ranked: (ranked[1].is_empty, ranked[0], ranked[1].is_egg_info))
        in_order += [metadata for _, metadata in same]
    return in_order


def find_leftovers(folder: str) -> Iterator[str]:
    """Paths of metadata folders that an interrupted pip left behind, such as ``~ame-1.0.dist-info``."""
    yield from (os.path.join(folder, name) for name in _listing(folder) if name[0] == "~" and name.endswith(_SUFFIXES))


def _version_key(version: str) -> tuple[bool, Version]:
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, Version("0")


def _find_in_folder(folder: str) -> Iterator[MetadataFolder]:
    names = _listing(folder)
    if folder.endswith(".egg"):
        # An unpacked egg is a path entry of its own, named for the distribution.
        stem = os.path.basename(folder).removesuffix(".egg")
        names = [name for name in names if name != "EGG-INFO"]
        yield _metadata_folder(os.path.join(folder, "EGG-INFO"), stem)
    for name in names:
        # pip leaves "~ame-1.0.dist-info" behind when it is interrupted.
        if name.endswith(_SUFFIXES) and name[0] != "~":
            yield _metadata_folder(f"{folder}/{name}", name[: name.rindex(".")])


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _metadata_folder(location: str, stem: str) -> MetadataFolder:
    name, _, rest = stem.partition("-")
    return MetadataFolder(_canonical(name), rest.partition("-")[0], location, _read_file)


def _canonical(name: str) -> str:
    """What canonicalize_name gives, without its regular expression where none is needed."""
    name = name.lower().replace("_", "-").replace(".", "-")
    return canonicalize_name(name) if "--" in name else name


def _read_file(folder: str, filename: str) -> bytes | None:
    """Without a file object, which would ask the system four times more; metadata files are small."""
    try:
        file = os.open(f"{folder}/{filename}", _READ_ONLY)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        data = chunk = os.read(file, _CHUNK)
        while len(chunk) == _CHUNK:
            chunk = os.read(file, _CHUNK)
            data += chunk
        return data
    except OSError:
        return None
    finally:
        os.close(file)


def _find_with(finder: object, entries: list[str]) -> Iterator[MetadataFolder]:
    """What a finder of somebody else, or importlib's own in a zip file, offers."""
    context = importlib.metadata.DistributionFinder.Context(path=entries)
    try:
        for distribution in finder.find_distributions(context):  # type: ignore[attr-defined]
            if (metadata := _adapted(distribution)) is not None:
                yield metadata
    except Exception as error:  # noqa: BLE001 - a finder is somebody else's code
        logger.warning("metadata finder %r failed and is left out: %s", finder, error)


def _adapted(distribution: importlib.metadata.Distribution) -> MetadataFolder | None:
    """``None`` where it has no name, or where that cannot be read; the others of its finder, or zip file, go on."""
    path = getattr(distribution, "_path", None)
    try:
        name, version = distribution.metadata["Name"], distribution.version or ""
    except Exception as error:  # noqa: BLE001 - a finder is somebody else's code
        where = path or f"a distribution of {type(distribution).__module__}"
        logger.warning("metadata of %s cannot be read, and the distribution is left out: %s", where, error)
        return None
    if not name:
        return None

    def read(_: str, filename: str) -> bytes | None:
        try:
            text = distribution.read_text(filename)
        except Exception as error:  # noqa: BLE001 - a finder is somebody else's code
            where = path or f"distribution {name!r}"
            logger.warning("%s of %s cannot be read and is left out: %s", filename, where, error)
            return None
        return None if text is None else text.encode()

    location = str(path or f"{type(distribution).__module__}:{name}").rstrip("/")
    return MetadataFolder(canonicalize_name(name), version, location, read)
