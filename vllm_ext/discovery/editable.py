"""Editable installations: the module lies in a source tree, the metadata in a folder of installed packages.

A ``.pth`` file beside the metadata leads from one to the other: by a line that is a folder, or by a line that imports a
finder which has the module's place in its text. Neither is run; both are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from importlib.machinery import all_suffixes
from typing import NamedTuple

from packaging.utils import canonicalize_name

from vllm_ext.discovery.claims import by_likeness, lists_file
from vllm_ext.discovery.folders import MetadataFolder


class Link(NamedTuple):
    """A line of a ``.pth`` file."""

    pth: str
    """Path of the file."""
    folder: str | None = None
    """The folder that it adds to the path."""
    finder: str | None = None
    """The Python file beside it that it imports."""


def links_in(folder: str) -> Iterator[Link]:
    """Links of all ``.pth`` files in a path entry, in the order in which Python reads them."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
    except OSError:
        return
    for name in names:
        pth = os.path.join(folder, name)
        for line in os.fsdecode(_read(pth)).splitlines():
            yield from _links_of(pth, line.strip())


def _links_of(pth: str, line: str) -> Iterator[Link]:
    beside = os.path.dirname(pth)
    if line.startswith(("import ", "import\t")):
        for name in line.partition(";")[0][len("import ") :].split(","):
            finder = os.path.join(beside, f"{name.strip()}.py")
            if os.path.isfile(finder):
                yield Link(pth, finder=finder)
    elif line and not line.startswith("#") and "\0" not in line:
        yield Link(pth, folder=os.path.realpath(os.path.join(beside, line)))


def names_module(finder: str, module: str) -> bool:
    """Whether a finder's text maps the module, or a part of it, to a place that exists."""
    key = rf"""['"]{re.escape(module)}(?:\.[\w.]+)?['"]\s*:\s*\[?\s*['"]([^'"\0]+)['"]"""
    places = re.findall(key, _read(finder).decode("utf-8", "replace"))
    return any(os.path.exists(place + suffix) for place in places for suffix in ("", *all_suffixes()))


def owner_of_link(link: Link, folders: Iterable[MetadataFolder]) -> MetadataFolder | None:
    """The distribution that a ``.pth`` file came with, of those in its folder."""
    filename = os.path.basename(link.pth)
    # setuptools: "__editable__.NAME-VERSION.pth"
    name = canonicalize_name(filename.removeprefix("__editable__.").removesuffix(".pth").partition("-")[0])
    candidates = by_likeness(folders, name)
    for metadata in candidates:
        if lists_file(metadata, filename):
            return metadata
    named = filename.startswith("__editable__.") and candidates and candidates[0].distribution == name
    return candidates[0] if named else None


def _read(path: str) -> bytes:
    # What is no regular file, such as a FIFO, may keep waiting who opens it.
    if not os.path.isfile(path):
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
