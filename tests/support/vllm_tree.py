"""A little tree shaped like vLLM's, on disk, for a static scan to read: importing any of it fails."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": """
        raise RuntimeError("imported")
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from vllm.engine import LLM
        __all__ = ["LLM", "ModelRegistry"]
        def __getattr__(name): ...
        """,
    "engine.py": "class LLM: ...\n",
    "logger.py": "def init_logger(name): ...\n",
    "platforms/__init__.py": "from .interface import *\nfrom .interface import Platform\n",
    "platforms/interface.py": """
        from typing import TYPE_CHECKING
        import enum
        if TYPE_CHECKING:
            from vllm.config import VllmConfig
        class Platform: ...
        class PlatformEnum(enum.Enum): ...
        try:
            from vllm import fast
        except ImportError:
            fast = None
        """,
    "envs.py": "def __getattr__(name): ...\n",
    "model_executor/layers/norm.py": "class RMSNorm: ...\n",
    "_C.abi3.so": "",
}


def write_tree(folder: Path, files: dict[str, str] = FILES, package: str = "vllm") -> Path:
    """Write ``files`` below ``folder/package``; returns ``folder``."""
    from textwrap import dedent

    for name, text in files.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return folder
