"""Settings that do not reach a vLLM are named, with its own option where there is one."""

from __future__ import annotations

import pytest
from support.distributions import config, record

from vllm_ext.discovery import Provider, builtin_platforms
from vllm_ext.hosts import unpassed_settings
from vllm_ext.plan import resolve

VLLM = Provider("vllm", "0.32.0", "/site/vllm-0.32.0.dist-info")


def sentences(*records, command=(), **settings) -> list[str]:
    plan = resolve([*records, *builtin_platforms(VLLM)], config(host="vllm", **settings), {"vllm": VLLM})
    return unpassed_settings(plan.bind(plan.candidates()[0]), command)


def test_defaults_need_no_word():
    assert sentences(record("a"), record("b")) == []


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("attention__backend", "TORCH_SDPA", "--attention-backend TORCH_SDPA"),
        ("worker__cls", "acme.Worker", "--worker-cls acme.Worker"),
        ("worker__extension_cls", "acme.More", "--worker-extension-cls acme.More"),
        ("custom_ops", ["none", "+rms_norm"], """--compilation-config '{"custom_ops": ["none", "+rms_norm"]}'"""),
    ],
)
def test_what_has_an_option_of_vllms_is_said_with_it(key, value, option):
    name = key.replace("__", ".")

    assert sentences(**{key: value}) == [f"no variable tells vLLM of {name}; its own option does: {option}"]


def test_options_of_what_is_used_are_additional_config():
    options = {"a": {"level": 3}}

    assert sentences(record("a"), options=options) == [
        """no variable tells vLLM of options; its own option does: --additional-config '{"a": {"level": 3}}'"""
    ]
    assert sentences(record("a"), options=options, plugins__general__disabled=["a"]) == []


@pytest.mark.parametrize("word", ["--worker-cls", "--worker-cls=acme.Worker"])
def test_what_the_command_says_itself_needs_no_word(word):
    assert sentences(worker__cls="acme.Worker", command=["vllm", "serve", word]) == []


def test_settings_of_the_embedded_engine_are_named_together():
    assert sentences(engine__seed=3, engine__block_size=32) == [
        "vLLM is not told of engine.block_size, engine.seed, which the embedded engine alone reads"
    ]


def test_an_order_of_general_plugins_is_not_kept():
    order = {"plugins__general__enabled": ["b", "a"]}

    assert sentences(record("a"), record("b"), **order) == [
        "vLLM runs general plugins in the order in which it finds them, and not in that of plugins.general.enabled"
    ]
    assert sentences(record("a"), plugins__general__enabled=["a"]) == []
