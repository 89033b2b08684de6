"""Fixtures for all tests: a clean environment, and registries that forget what a test registered."""

from __future__ import annotations

import os

import pytest


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
    from vllm_ext.registry.custom_ops import CUSTOM_OPS
    from vllm_ext.registry.models import ModelRegistry

    models, ops = ModelRegistry.snapshot(), CUSTOM_OPS.snapshot()
    yield
    ModelRegistry.restore(models)
    CUSTOM_OPS.restore(ops)
    current_platform.set_default(None)
