"""Reading a distribution's metadata files, whatever state they are in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from packaging.utils import canonicalize_name

_VALUE = re.compile(r"\w+(\.\w+)*\s*(:\s*\w+(\.\w+)*)?\s*(\[.*\])?")
_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOSTS = frozenset({"vllm", "vllm-ext"})


def decode(data: bytes) -> tuple[str, str | None]:
    """The text, and what is wrong with its encoding."""
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return data.decode("utf-8", "replace"), f"entry_points.txt is not UTF-8 (byte {error.start})"


def parse_entry_points(data: bytes) -> Iterator[tuple[str, str, str, str | None]]:
    """``(group, name, value, fault)`` for each declaration; an exact repetition is given once."""
    text, encoding_fault = decode(data)
    group = ""
    seen = set()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line.strip("[]")
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if (group, name, value) in seen:
            continue
        seen.add((group, name, value))
        fault = encoding_fault
        if not equals or not name:
            fault = f"line {number} of entry_points.txt is not of the form 'name = module:attribute': {line!r}"
        elif not _VALUE.fullmatch(value):
            fault = f"line {number} of entry_points.txt: {value!r} is not of the form 'module:attribute'"
        yield group, name, value, fault


def parse_headers(text: str) -> dict[str, list[str]]:
    """Header fields of a METADATA or PKG-INFO file, without continuation lines."""
    headers: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line:
            break
        field, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            headers.setdefault(field, []).append(value.strip())
    return headers


def host_requirements(requirements: list[str]) -> tuple[str, ...]:
    """Those of ``requirements`` that are about vllm or vllm_ext."""
    names = ((_REQUIREMENT_NAME.match(text), text) for text in requirements)
    return tuple(text for name, text in names if name and canonicalize_name(name.group()) in _HOSTS)


def is_editable(direct_url: bytes | None) -> bool:
    """Whether ``direct_url.json`` says that the distribution is installed in editable mode."""
    try:
        url = json.loads(direct_url or b"{}")
    except ValueError:
        return False
    info = url.get("dir_info") if isinstance(url, dict) else None
    return isinstance(info, dict) and info.get("editable") is True
