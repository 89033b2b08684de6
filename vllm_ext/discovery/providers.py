"""Which distribution provides a module. Files are looked at; nothing is imported.

A module is where Python would find it: the first path entry with the module itself; else folders without
``__init__.py`` of that name; else the finder of an editable installation. The distribution is the one that lists the
module in that place, or that leads there. So a folder in front of an installed package that no distribution knows of is
provided by none, whatever lies behind it.
"""

from __future__ import annotations

import os
import zipimport
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import all_suffixes

import msgspec
from packaging.utils import canonicalize_name

from vllm_ext.discovery.claims import Claim, by_likeness, claim_of, strongest
from vllm_ext.discovery.editable import Link, links_in, names_module, owner_of_link
from vllm_ext.discovery.folders import MetadataFolder, find_elsewhere, find_in_entry, ordered, path_entries
from vllm_ext.discovery.metadata import editable_project


class Provider(msgspec.Struct, frozen=True):
    """The distribution that provides a module."""

    distribution: str
    """Canonical name: lower case, with single dashes."""
    version: str
    location: str
    """The metadata folder."""


def find_providers(modules: Iterable[str], path: Sequence[str] | None = None) -> dict[str, Provider]:
    """By module, the distribution on ``path`` (default ``sys.path``) that provides it.

    Of ``a.b.c`` it is that of ``a``; where ``a`` is a folder without ``__init__.py``, which distributions may share,
    that of ``a.b``, and so on. A module that no distribution provides is not in the result. Nothing is imported, and it
    never raises.
    """
    names = [name for name in dict.fromkeys(modules) if all(part.isidentifier() for part in name.split("."))]
    if not names:
        return {}
    search = _Search(path_entries(path), follow_links=path is not None)
    found = ((name, search.find(name)) for name in names)
    return {name: _provider(metadata) for name, metadata in found if metadata is not None}


def _provider(metadata: MetadataFolder) -> Provider:
    return Provider(metadata.distribution, metadata.version_in(metadata.headers()), metadata.location)


class _Search:
    """Remembers, for the length of one call, what the path entries hold."""

    def __init__(self, entries: list[str], *, follow_links: bool) -> None:
        self._folders: dict[str, list[MetadataFolder]] = {}
        self._links: dict[str, list[Link]] = {}
        self._sites = entries
        # On sys.path itself, the folders that .pth files add are there already.
        linked = self._linked_folders() if follow_links else ()
        self._entries = list(dict.fromkeys([*entries, *linked]))

    def find(self, module: str) -> MetadataFolder | None:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            package = ".".join(parts[:depth])
            portions = []
            for entry in self._entries:
                form = _form_in(entry, package)
                if form == "module":
                    return self._owner(entry, package)
                if form == "namespace":
                    portions.append(entry)
            if not portions:
                return self._found_by_finder(package) or self._known_elsewhere(package)
        owners = (self._owner(entry, module) for entry in portions)
        return next((owner for owner in owners if owner is not None), None)

    def _owner(self, entry: str, module: str) -> MetadataFolder | None:
        """The distribution that a module in this path entry belongs to."""
        here, claim = strongest(self._in(entry), module)
        if claim >= Claim.PART:
            return here
        linking = list(self._linking_to(entry))
        if linking:
            by_claim, _ = strongest(linking, module)
            return by_claim or by_likeness(linking, module)[0]
        return self._project_around(entry, module) or here or self._named_like(module)

    def _linking_to(self, entry: str) -> Iterator[MetadataFolder]:
        """Distributions whose ``.pth`` file adds the path entry."""
        for site in self._sites:
            for link in self._links_in(site):
                if link.folder == entry and (owner := owner_of_link(link, self._in(site))):
                    yield owner

    def _project_around(self, entry: str, module: str) -> MetadataFolder | None:
        """A distribution in editable mode whose project holds the path entry, by whatever means it got there."""
        for metadata in by_likeness((folder for site in self._sites for folder in self._in(site)), module):
            project = editable_project(metadata.read("direct_url.json"))
            if project is None or not f"{entry}/".startswith(f"{project}/"):
                continue
            if metadata.distribution == canonicalize_name(module) or claim_of(metadata, module) >= Claim.PART:
                return metadata
        return None

    def _named_like(self, module: str) -> MetadataFolder | None:
        """A distribution of the module's name, anywhere, that does not say what it consists of."""
        name = canonicalize_name(module)
        folders = (folder for site in self._sites for folder in self._in(site) if folder.distribution == name)
        return next((folder for folder in folders if claim_of(folder, module) is Claim.BY_NAME), None)

    def _found_by_finder(self, module: str) -> MetadataFolder | None:
        for site in self._sites:
            for link in self._links_in(site):
                if link.finder and names_module(link.finder, module):
                    return owner_of_link(link, self._in(site))
        return None

    def _known_elsewhere(self, module: str) -> MetadataFolder | None:
        found, claim = strongest(ordered((0, folder) for folder in find_elsewhere(self._sites)), module)
        return found if claim >= Claim.PART else None

    def _linked_folders(self) -> Iterator[str]:
        return (link.folder for site in self._sites for link in self._links_in(site) if link.folder)

    def _in(self, entry: str) -> list[MetadataFolder]:
        if entry not in self._folders:
            self._folders[entry] = ordered((0, folder) for folder in find_in_entry(entry))
        return self._folders[entry]

    def _links_in(self, site: str) -> list[Link]:
        if site not in self._links:
            self._links[site] = list(links_in(site))
        return self._links[site]


def _form_in(entry: str, module: str) -> str | None:
    """What a path entry holds of a module: ``module``, a ``namespace`` folder, or nothing."""
    base = os.path.join(entry, *module.split("."))
    if os.path.isfile(entry):
        return "module" if _is_in_zip(entry, module.partition(".")[0]) else None
    if any(os.path.isfile(f"{base}/__init__{end}") or os.path.isfile(base + end) for end in all_suffixes()):
        return "module"
    return "namespace" if os.path.isdir(base) else None


def _is_in_zip(archive: str, module: str) -> bool:
    try:
        return zipimport.zipimporter(archive).find_spec(module) is not None
    except (ImportError, OSError, ValueError):
        return False
