"""Findings on one metadata folder: is it whole, and does it say what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from vllm_ext.discovery.findings import Finding, Severity
from vllm_ext.discovery.folders import MetadataFolder
from vllm_ext.discovery.metadata import host_requirements


def leftover(location: str) -> Finding:
    """The finding on a metadata folder that an interrupted pip left behind."""
    text = f"{location} was left behind by an interrupted pip; it is ignored"
    return Finding("note", "pip-leftover", location, text, f"Delete {location}.")


def check_folder(metadata: MetadataFolder, *, declares: bool) -> Iterator[Finding]:
    """Findings on the folder's completeness, METADATA and requirements; ``declares``: whether plugins of ours."""
    if metadata.is_egg_info and os.path.isfile(metadata.location):
        # distutils wrote a file in place of the folder: PKG-INFO, and never entry points.
        return
    for filename in ("entry_points.txt", "METADATA", "PKG-INFO"):
        if not os.path.lexists(path := f"{metadata.location}/{filename}"):
            continue
        if not os.access(path, os.R_OK):
            text = f"{path} cannot be read, so that what {metadata.distribution} declares is not seen"
            yield Finding("warning", "unreadable-metadata", metadata.distribution, text, f"Make {path} readable.")
        elif not os.path.isfile(path):
            text = (
                f"{path} is no regular file and is not read, so that what {metadata.distribution} declares is not seen"
            )
            remedy = f"Install {metadata.distribution} anew."
            yield Finding("warning", "unreadable-metadata", metadata.distribution, text, remedy)
    if metadata.is_empty:
        yield from _check_without_metadata(metadata, declares)
    else:
        yield from _check_headers(metadata, "warning" if declares else "note")
        yield from _check_requirements(metadata)


def _check_without_metadata(metadata: MetadataFolder, declares: bool) -> Iterator[Finding]:
    name, location = metadata.distribution, metadata.location
    missing = "PKG-INFO" if metadata.is_egg_info else "METADATA"
    if declares:
        text = f"{location} declares plugins but has no {missing}: version and requirements of {name} are unknown"
        remedy = f"Install it anew: pip install --force-reinstall --no-deps {name}."
        yield Finding("warning", "missing-metadata", name, text, remedy)
    elif metadata.read("entry_points.txt") is None:
        text = f"{location} has neither {missing} nor entry_points.txt, so it describes no distribution"
        yield Finding("warning", "empty-metadata", name or location, text, f"Delete {location}.")


def _check_headers(metadata: MetadataFolder, severity: Severity) -> Iterator[Finding]:
    filename = "PKG-INFO" if metadata.read("METADATA") is None else "METADATA"
    file, subject = f"{metadata.location}/{filename}", metadata.distribution
    remedy = f"Install {subject} anew, or ask its authors to correct {filename}."
    try:
        (metadata.read(filename) or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        text = f"{file} is not UTF-8 (byte {error.start})"
        yield Finding(severity, "metadata-not-utf8", subject, text, remedy)
    headers = metadata.headers()
    lacking = [field for field in ("Name", "Version") if not any(headers.get(field, ()))]
    if lacking:
        text = f"{file} has no {' and no '.join(lacking)}"
        yield Finding(severity, "incomplete-metadata", subject, text, remedy)
    version = headers.get("Version", [""])[0]
    if version and not _is_version(version):
        text = f"{file} has Version {version!r}, which is not a valid version, so no requirement can be met by it"
        yield Finding(severity, "invalid-version", subject, text, remedy)


def _check_requirements(metadata: MetadataFolder) -> Iterator[Finding]:
    # Here, since its import takes longer than that of all discovery, which every process does.
    from packaging.requirements import InvalidRequirement, Requirement

    for text in host_requirements(metadata.requirements_in(metadata.headers())):
        try:
            Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).partition("\n")[0]
            where = (
                f"{metadata.location} has the requirement {text!r}, which cannot be read and is not checked: {reason}"
            )
            remedy = f"Ask the authors of {metadata.distribution} to write it like 'vllm>=0.30'."
            yield Finding("warning", "invalid-requirement", metadata.distribution, where, remedy)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
