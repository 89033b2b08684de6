"""What all tests have: the fixtures that plugins' own tests have too, and those below ``support``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis

# No test fails since the machine is busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Tests start hundreds of processes, which import the same modules: what one has compiled the next ones find.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Models this small gain nothing from threads, and lose much where the tests share the cores. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What tests share is importable as ``support.*``; its fixtures are known everywhere.
sys.path.insert(0, str(Path(__file__).parent))
pytest_plugins = ["vllm_ext.testing.pytest_plugin", "support.checkpoints", "support.plugins"]
