"""The scripts in ``tools/`` as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parent.parent.parent / "tools"


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
