"""How far a distribution's own lists say that a module is its own."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterable

from packaging.utils import canonicalize_name

from vllm_ext.discovery.folders import MetadataFolder

_INSTALLED_LISTS = ("RECORD",)
_EGG_LISTS = ("SOURCES.txt", "installed-files.txt", "RECORD")


class Claim(enum.IntEnum):
    """From weak to strong."""

    NONE = 0
    BY_NAME = 1
    """It lists nothing at all, but has the module's name."""
    PART = 2
    """It lists files below the module, or names the module in ``top_level.txt``."""
    WHOLE = 3
    """It lists the file that is imported."""


def claim_of(metadata: MetadataFolder, module: str) -> Claim:
    """How strongly the distribution claims a module."""
    name = module.replace(".", "/").encode()
    filenames = _EGG_LISTS if metadata.is_egg_info else _INSTALLED_LISTS
    lists = [data for filename in filenames if (data := metadata.read(filename))]
    # Most lists do not have the name at all, and finding that out is cheaper than a search for a pattern.
    naming = [data for data in lists if name in data]
    own, below = _patterns(metadata, module) if naming else (None, None)
    if own and any(own.search(data) for data in naming):
        return Claim.WHOLE
    top_level = metadata.read("top_level.txt") or b""
    if name in top_level.split() or (below and any(below.search(data) for data in naming)):
        return Claim.PART
    if not lists and not top_level and metadata.distribution == canonicalize_name(module):
        return Claim.BY_NAME
    return Claim.NONE


def strongest(folders: Iterable[MetadataFolder], module: str) -> tuple[MetadataFolder | None, Claim]:
    """The folder with the strongest claim, the first of several, and that claim.

    Those named like the module are asked first, and the first that lists the very file is taken: most often one list
    of files is read, and not a thousand.
    """
    best, best_claim = None, Claim.NONE
    for metadata in by_likeness(folders, module):
        claim = claim_of(metadata, module)
        if claim > best_claim:
            best, best_claim = metadata, claim
        if claim is Claim.WHOLE:
            break
    return best, best_claim


def by_likeness(folders: Iterable[MetadataFolder], module: str) -> list[MetadataFolder]:
    """First those that are named like the module, then those whose name begins with it, then others."""
    name = canonicalize_name(module)
    return sorted(folders, key=lambda folder: (folder.distribution != name, not folder.distribution.startswith(name)))


def lists_file(metadata: MetadataFolder, filename: str) -> bool:
    """Whether the RECORD names a file that lies beside the metadata folder."""
    pattern = re.compile(rb'^"?' + re.escape(os.fsencode(filename)) + rb'(?=[",\r\n]|\Z)', re.MULTILINE)
    return pattern.search(metadata.read("RECORD") or b"") is not None


def _patterns(metadata: MetadataFolder, module: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """What a list has at the start of a line for the file that is imported, and for any file below the module.

    Bytes, since a list need not be UTF-8 to be of use.
    """
    start = rb'^"?'
    if metadata.is_egg_info:
        # installed-files.txt is relative to the egg-info folder; SOURCES.txt to the project, of which this is "src".
        source = os.path.basename(os.path.dirname(metadata.location))
        start += rb"(?:\.\./|" + re.escape(os.fsencode(source)) + rb"/)?"
    name = re.escape(module.replace(".", "/").encode())
    suffix = rb'(?:\.pyc?|(?:\.[\w-]+)*\.(?:so|pyd))(?=[",\r\n]|\Z)'
    own = start + name + rb"(?:/__init__)?" + suffix
    return re.compile(own, re.MULTILINE), re.compile(start + name + rb"/", re.MULTILINE)
