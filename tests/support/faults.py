"""The plugins that are wrong, below ``tests/plugins/faults``: each fault is one or more path entries."""

from __future__ import annotations

from pathlib import Path

FAULTS = Path(__file__).parent.parent / "plugins" / "faults"


def folders(name: str) -> list[Path]:
    """Path entries of the fault ``name``, in order."""
    fault = FAULTS / name
    listed = fault / "path_entries.txt"
    return [fault / line for line in listed.read_text().split()] if listed.exists() else [fault]


def all_folders() -> list[Path]:
    """Path entries of all faults, sorted by the faults' names."""
    names = sorted(path.name for path in FAULTS.iterdir() if path.is_dir() and path.name != "__pycache__")
    return [folder for name in names for folder in folders(name)]
