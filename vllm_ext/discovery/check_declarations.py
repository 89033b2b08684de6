"""Findings on one ``entry_points.txt``, of those that mention vllm."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_ext.contracts.groups import ENTRY_POINT_GROUPS, GROUP_PREFIXES, closest_group
from vllm_ext.discovery.findings import Finding, Severity
from vllm_ext.discovery.folders import MetadataFolder
from vllm_ext.discovery.metadata import declaration_lines, decode, split_declaration

_FILENAME = "entry_points.txt"
_FATAL = "importlib.metadata fails on that, and with it every program that asks for any entry point"


def check_declarations(metadata: MetadataFolder) -> Iterator[Finding]:
    """Findings on groups and lines; none where the file does not mention vllm."""
    data = metadata.read(_FILENAME)
    # In UTF-16, which some editors and shells write, a NUL follows each letter.
    plain = (data or b"").replace(b"\0", b"")
    if data is None or b"vllm" not in plain.lower():
        return
    file, subject = f"{metadata.location}/{_FILENAME}", metadata.distribution
    text, encoding_fault = decode(data)
    declared = list(declaration_lines(text))
    ours = any(prefix.encode() in plain for prefix in GROUP_PREFIXES)
    if encoding_fault and ours:
        problem = f"{file}: {encoding_fault}; {_FATAL}"
        yield Finding("error", "entry-points-not-utf8", subject, problem, f"Save {file} as UTF-8.")
        if plain != data:  # Its lines are not to be made out.
            return
    yield from _check_groups(file, list(dict.fromkeys(group for _, group, _ in declared if group is not None)))
    if ours:
        yield from _check_lines(file, subject, declared)


def _is_ours(group: str) -> bool:
    return group.startswith(GROUP_PREFIXES)


def _check_groups(file: str, groups: list[str]) -> Iterator[Finding]:
    for group in groups:
        if group in ENTRY_POINT_GROUPS:
            continue
        right = closest_group(group)
        if right is not None:
            text = f"{file} declares plugins in group {group!r}, which nothing reads; {right!r} is likely meant"
            remedy = f"Write [{right}] in the plugin's project and install it anew."
            yield Finding("warning", "misspelt-group", group, text, remedy)
        elif _is_ours(group):
            text = f"{file} declares plugins in the unknown group {group!r}, which nothing reads"
            remedy = f"If it is meant for vllm_ext, use one of {', '.join(sorted(ENTRY_POINT_GROUPS))}."
            yield Finding("note", "unknown-group", group, text, remedy)


def _check_lines(file: str, subject: str, declared: list[tuple[int, str | None, str]]) -> Iterator[Finding]:
    seen: set[tuple[str, str, str]] = set()
    for number, group, line in declared:
        where = f"{file}, line {number}"
        name, value, fault = split_declaration(number, line)
        if line.startswith(";"):
            if group is not None:
                yield _comment(subject, where, line)
        elif group is None:
            text = f"{where} stands before any [group] and is ignored: {line!r}"
            yield Finding("warning", "declaration-without-group", subject, text, "Put it below a line such as [group].")
        elif "=" not in line:
            yield _malformed(subject, f"{where} has no '=': {line!r}; {_FATAL}")
        elif not _is_ours(group):
            continue
        elif (group, name, value) in seen:
            text = f"{where} declares {name!r} once more, with the same target"
            yield Finding("note", "repeated-declaration", subject, text, f"Delete line {number}.")
        elif fault:
            yield _malformed(subject, f"{file}: {fault}")
        elif name.split() != [name]:
            text = f"{where} declares the plugin {name!r}, whose name has blanks"
            yield Finding("warning", "name-with-blanks", subject, text, f"Write it as {'_'.join(name.split())!r}.")
        seen.add((group or "", name, value))


def _comment(subject: str, where: str, line: str) -> Finding:
    consequence = f"importlib.metadata takes it for a declaration named {line.partition('=')[0].strip()!r}"
    text = f"{where} begins with ';': {consequence if '=' in line else _FATAL}"
    severity: Severity = "warning" if "=" in line else "error"
    return Finding(severity, "comment-with-semicolon", subject, text, "Begin comments with '#'.")


def _malformed(subject: str, text: str) -> Finding:
    remedy = "Write it like 'name = package.module:attribute' in the plugin's project and install that anew."
    return Finding("error", "malformed-declaration", subject, text, remedy)
