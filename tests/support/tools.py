"""The scripts in ``tools/`` as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).parent.parent.parent / "tools"


def quotient(first: float, second: float, *, digits: int, of_ratio: int = 3) -> Any:
    """What the quotient of two numbers may be, to compare a ratio with, where all three were rounded by themselves.

    Args:
        digits, of_ratio: those behind the point of the numbers, and of the ratio.
    """
    half = 0.5 * 10.0**-digits
    least, most = (first - half) / (second + half), (first + half) / (second - half)
    return pytest.approx((least + most) / 2, abs=(most - least) / 2 + 0.5 * 10.0**-of_ratio + 1e-9)


def load_tool(name: str) -> ModuleType:
    """The module of ``tools/NAME.py``, executed once in a process."""
    # They import one another as a script does, whose own folder is on the path.
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    qualified = f"vllm_ext_tools.{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, TOOLS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up while the script runs.
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]
