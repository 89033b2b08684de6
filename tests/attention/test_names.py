"""Names that plugins import from ``vllm_ext.attention``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vllm_ext.attention
from vllm_ext.attention.backends.registry import AttentionBackendEnum


def test_backend_of_older_plugins_is_the_enumeration_and_deprecated():
    with pytest.warns(DeprecationWarning, match=r"0\.3\.0 will not have it; use AttentionBackendEnum and register_"):
        from vllm_ext.attention import _Backend

    assert _Backend is AttentionBackendEnum


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'vllm_ext.attention' has no attribute 'Backend'"):
        _ = vllm_ext.attention.Backend


def test_registering_a_backend_imports_no_torch():
    program = (
        "import sys; from vllm_ext.attention.backends.registry import register_backend; register_backend('X', 'a.B'); "
        "print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
