"""Names of plugins as settings give them: ``name``, or ``distribution:name`` where a name is ambiguous."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from packaging.utils import canonicalize_name

from vllm_ext.contracts.groups import closest_group
from vllm_ext.discovery import ExtensionRecord
from vllm_ext.errors import AmbiguousPlugin, PluginNotFound, did_you_mean, listing
from vllm_ext.plan.rules import RULES

_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def matches(reference: str, record: ExtensionRecord) -> bool:
    """Whether ``reference`` stands for the plugin of ``record``."""
    if reference == record.name:
        return True
    distribution, colon, name = reference.partition(":")
    return bool(colon) and name == record.name and canonicalize_name(distribution) == record.distribution


def matches_any(references: Iterable[str], record: ExtensionRecord) -> bool:
    return any(matches(reference, record) for reference in references)


def in_yaml(reference: str) -> str:
    """How to write a name into the settings file: in quotes where YAML would make something else of it."""
    is_plain = re.fullmatch(r"[A-Za-z_][\w.-]*(:[\w.-]+)?", reference) and reference.lower() not in _YAML_WORDS
    return reference if is_plain else json.dumps(reference)


def ambiguous(reference: str, kind: str, found: Sequence[ExtensionRecord], where: str) -> AmbiguousPlugin:
    """The error for a name in the setting ``where`` that several plugins have."""
    return AmbiguousPlugin(
        f"{kind} plugin {reference!r}, named in {where}, exists more than once: {tell_apart(found)}", plugin=reference
    )


def tell_apart(found: Sequence[ExtensionRecord], where: str = "", *, by_disabling: bool = False) -> str:
    """Plugins of one name, and how to name one of them in the setting ``where``, or to turn the others off there."""
    owners = ", ".join(f"{record.distribution} {record.version} ({record.value})" for record in found)
    choices = sorted({f"{record.distribution}:{record.name}" for record in found})
    if len(choices) == 1:
        return f"{owners}. It is for that distribution to declare the name once"
    to_do = "Disable all but one of" if by_disabling else "Write"
    names = (" and " if by_disabling else " or ").join(map(repr, choices))
    return f"{owners}. {to_do} {names}" + (f" in {where}" if where else "")


def not_found(
    reference: str, what: str, where: str, offered: Sequence[ExtensionRecord], everything: Sequence[ExtensionRecord]
) -> PluginNotFound:
    """The error for a name that nothing usable has.

    Args:
        what: the kind of plugin that was sought; where: the setting that names it.
        offered: the plugins that could be named there; everything: all records, for hints.
    """
    names = sorted({record.name for record in offered})
    text = f"no {what} {reference!r} is installed, which {where} names{did_you_mean(reference, names)}; "
    text += f"installed: {listing(names)}"
    for record in everything:
        if record in offered or not matches(reference, record):
            continue
        if record.shadowed_by:
            text += f". {record.location} declares it, but {record.shadowed_by} comes first on the path and hides it"
        else:
            text += f". {record.distribution} {record.version} declares that name in group {record.group!r}"
            text += _where_named(record.group)
    return PluginNotFound(text, plugin=reference)


def _where_named(group: str) -> str:
    """What to do with a name that stands in ``group``."""
    rule = next((rule for rule in RULES if group in rule.kind.groups), None)
    if rule is None:
        closest = closest_group(group)
        likely = f"; {closest!r} is likely meant" if closest else ""
        return f", which nothing reads{likely}"
    return f": it is named in {rule.asked_key}"
