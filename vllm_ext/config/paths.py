"""Key paths as text: parts joined by dots, with quotes around a part that a dot would split.

Names of plugins, and the keys of their options, are free text; ``options."acme.npu".batch`` has three parts.
"""

from __future__ import annotations

import re

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PART = re.compile(rf"({_QUOTED}|[^.]*)\.", re.DOTALL)
_ASSIGNMENT = re.compile(rf'((?:{_QUOTED}|[^"=])+)=(.*)', re.DOTALL)
_NEEDS_QUOTES = re.compile(r'[."=]|^\s|\s$|^$')


def join_path(parts: tuple[str, ...]) -> str:
    """``parts`` as one text, from which :func:`split_path` gets them back."""
    return ".".join(_quote(part) if _NEEDS_QUOTES.search(part) else part for part in parts)


def split_path(path: str) -> tuple[str, ...]:
    """The parts of a key path; a quotation mark that has no partner is an ordinary character."""
    return tuple(_unquote(part) for part in _PART.findall(f"{path}."))


def split_assignment(text: str) -> tuple[str, str] | None:
    """Key and value of ``KEY=VALUE``, without the blanks around the key; ``None`` where there is no key."""
    match = _ASSIGNMENT.fullmatch(text)
    if match is None or not match[1].strip():
        return None
    return match[1].strip(), match[2]


def _quote(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unquote(part: str) -> str:
    if len(part) < 2 or not (part.startswith('"') and part.endswith('"')):
        return part
    return re.sub(r"\\(.)", r"\1", part[1:-1], flags=re.DOTALL)
