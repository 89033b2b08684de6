"""Fixtures for all tests: a clean environment, and registries that forget what a test registered."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

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
pytest_plugins = ["support.checkpoints", "support.plugins"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path_factory):
    """No setting reaches a test from outside: neither variables nor the user's own settings file."""
    for name in list(os.environ):
        if name.startswith("VLLM_EXT_") or name == "VLLM_PLUGINS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-config"))


@pytest.fixture(autouse=True)
def _clean_registries():
    """Registrations of a test end with it, and so does the process's default platform."""
    from vllm_ext.contracts.current_platform import current_platform
    from vllm_ext.managers import set_default_bound_plan
    from vllm_ext.managers.policy import forget_reports
    from vllm_ext.registry.attention_backends import ATTENTION_BACKENDS
    from vllm_ext.registry.custom_ops import CUSTOM_OPS
    from vllm_ext.registry.lora_resolvers import LORA_RESOLVERS
    from vllm_ext.registry.model_loaders import MODEL_LOADERS
    from vllm_ext.registry.models import ModelRegistry
    from vllm_ext.registry.owners import forget_owners
    from vllm_ext.registry.quantization import QUANTIZATION_METHODS
    from vllm_ext.registry.tokenizers import TokenizerRegistry

    registries = (
        ModelRegistry,
        ATTENTION_BACKENDS,
        QUANTIZATION_METHODS,
        MODEL_LOADERS,
        TokenizerRegistry,
        LORA_RESOLVERS,
    )
    before, ops = [registry.snapshot() for registry in registries], CUSTOM_OPS.snapshot()
    yield
    for registry, state in zip(registries, before, strict=True):
        registry.restore(state)
    # In-tree ops register when their module is imported, which may have been in this test, and happens once.
    now = CUSTOM_OPS.ops.snapshot()
    in_tree = {name: op for name, op in now.items() if op.value.__module__.startswith("vllm_ext.")}
    CUSTOM_OPS.restore((ops[0] | in_tree, ops[1]))
    current_platform.set_default(None)
    set_default_bound_plan(None)
    forget_reports()
    forget_owners()
