"""Before a vLLM starts, its plugins are tried: what the user named has to work, what was found may be left out."""

from __future__ import annotations

import os

import pytest
from support.distributions import GENERAL, PLATFORM, config
from support.stand_in_vllm import install_vllm

from vllm_ext.contracts.groups import LOGITSPROCS_GROUP
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.errors import PlatformUnavailable, PluginLoadError
from vllm_ext.hosts import Prepared, prepare
from vllm_ext.managers.child import load_all_in_children

CODE = """
def good(): pass
def bad(): raise ValueError("out of order")
def npu(): return "vllm.platforms.interface.CpuPlatform"
"""


@pytest.fixture
def prepared(plugins):
    """Prepare what is installed: plugins of ``acme``, by group, as ``name = value``."""

    def prepared(entry_points, *, is_tried=True, vllm=(), **settings) -> Prepared:
        install_vllm(plugins, **dict(vllm))
        plugins.distribution("acme", entry_points, {"acme.py": CODE})
        plan = plan_installed(config(host="vllm", **settings))

        def load(decisions):
            return {id(report.decision): report for report in load_all_in_children(plan, decisions)}

        return prepare(plan, {}, load if is_tried else None)

    return prepared


def test_what_was_merely_found_and_fails_is_left_out(prepared):
    done = prepared({GENERAL: ["bad = acme:bad", "good = acme:good"]})

    assert done.variables == {"VLLM_PLUGINS": "good", "VLLM_TARGET_DEVICE": "cpu"}
    assert done.left_out == [
        "general plugin 'bad' of acme 0.1 failed: ValueError: out of order (vllm-ext show bad --load --set host=vllm "
        "has all of it); it is left out"
    ]
    assert [d.name for d in done.bound_plan.selected("general")] == ["good"]


def test_what_is_named_has_to_work(prepared):
    with pytest.raises(PluginLoadError, match=r"'bad' of acme 0.1 failed: ValueError: out of order") as caught:
        prepared({GENERAL: ["bad = acme:bad"]}, plugins__general__enabled=["bad"])

    assert "in bad" in caught.value.outcomes[0].traceback


def test_what_vllm_loads_in_any_case_has_to_work_too(prepared):
    with pytest.raises(PluginLoadError, match="vLLM loads every logits processor that is installed, and ends"):
        prepared({LOGITSPROCS_GROUP: ["warm = acme:Missing"]})


def test_without_trying_nothing_but_the_platform_is_imported(prepared):
    done = prepared({GENERAL: ["bad = nowhere:bad"], PLATFORM: ["npu = acme:npu"]}, is_tried=False)

    assert done.variables == {"VLLM_PLUGINS": "bad,npu"}


def test_a_platform_that_is_named_and_declines_ends_it(prepared):
    with pytest.raises(PlatformUnavailable, match=r"'cuda' of vllm 0.1 declined"):
        prepared({}, platform__driver="cuda")


def test_where_no_platform_is_left_nothing_can_be_started(prepared):
    with pytest.raises(PlatformUnavailable, match="no platform activated"):
        prepared({}, vllm={"cpu": None}.items())


BUILT_FOR_ANOTHER_DEVICE = (
    "'vllm.platforms.interface.CpuPlatform' if __import__('os').environ.get('VLLM_TARGET_DEVICE') == 'cpu' else None"
)


def test_the_cpu_that_is_named_is_asked_as_the_vllm_will_be_told(prepared):
    done = prepared({}, vllm={"cpu": BUILT_FOR_ANOTHER_DEVICE}.items(), platform__driver="cpu")

    assert done.variables["VLLM_TARGET_DEVICE"] == "cpu"
    assert "VLLM_TARGET_DEVICE" not in os.environ


def test_where_the_platform_is_left_to_vllm_it_is_not_told(prepared):
    with pytest.raises(PlatformUnavailable, match="no platform activated"):
        prepared({}, vllm={"cpu": BUILT_FOR_ANOTHER_DEVICE}.items())
