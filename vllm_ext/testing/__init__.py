"""For the tests of plugins: a model that runs on a platform, equal tokens, and installed plugins without pip.

Importing it imports neither torch nor pytest. The fixtures are in :mod:`vllm_ext.testing.pytest_plugin`, which a
``conftest.py`` names: ``pytest_plugins = ["vllm_ext.testing.pytest_plugin"]``.
"""

from vllm_ext.testing.app import FakeApp
from vllm_ext.testing.loading import assert_loads
from vllm_ext.testing.models import changed_model
from vllm_ext.testing.registries import restored_registries
from vllm_ext.testing.site import PluginSite, build_wheel, write_distribution
from vllm_ext.testing.tokens import (
    Greedy,
    assert_equal_tokens,
    assert_same_tokens,
    greedy_reference,
    greedy_tokens,
)

__all__ = [
    "FakeApp",
    "Greedy",
    "PluginSite",
    "assert_equal_tokens",
    "assert_loads",
    "assert_same_tokens",
    "build_wheel",
    "changed_model",
    "greedy_reference",
    "greedy_tokens",
    "restored_registries",
    "write_distribution",
]
