"""What a child process finds out besides: what a plugin registers, and whether it may be called a second time."""

from __future__ import annotations

import pytest
from support.distributions import GENERAL, PLATFORM

from vllm_ext.contracts.groups import ENDPOINT_PLUGINS_GROUP, STAT_LOGGER_PLUGINS_GROUP
from vllm_ext.managers.child import load_in_child

COUNT = "calls = []\ndef count():\n    calls.append(1)\n    return len(calls)\n"


@pytest.fixture
def load_twice(plugins, make_plan):
    """Install a plugin ``a`` of a group with that module, and load it in a child, twice."""

    def load_twice(code, group=GENERAL, value="a_plugin:register", timeout_s=20.0, **settings):
        plugins.distribution("a_dist", {group: [f"a = {value}"]}, {"a_plugin.py": COUNT + code})
        plan = make_plan(**settings)
        (decision,) = plan.find(None, "a")
        return load_in_child(plan, decision, timeout_s, again=True)

    return load_twice


@pytest.mark.parametrize(
    ("body", "state", "detail"),
    [
        # What a hook returns is nobody's business.
        ("return count() > 1 or None", "active", ""),
        ("if count() > 1: raise OSError('registered already')", "failed", "OSError: registered already"),
        (
            "import os\n    if count() > 1: os._exit(3)",
            "failed",
            "it ended the process with exit code 3 when it was called again",
        ),
        pytest.param(
            "import time\n    if count() > 1: time.sleep(600)",
            "failed",
            "it did not finish within 3 s when it was called again",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_second_call_has_an_outcome_of_its_own(load_twice, body, state, detail):
    report = load_twice(f"def register():\n    {body}\n", timeout_s=3)

    assert (report.outcome.state, report.outcome.detail) == ("active", "")
    assert (report.again.state, report.again.detail) == (state, detail)


ENDPOINT = """
class One:
    name = "x"
    required_tasks = ()
    def attach_router(self, *_): ...
    def init_state(self, *_): ...
class Other(One): ...
def register(): return One() if count() == 1 else Other()
"""


def test_the_second_call_has_to_give_the_same_kind_of_thing(load_twice):
    report = load_twice(ENDPOINT, ENDPOINT_PLUGINS_GROUP, plugins__endpoint__enabled=["a"])

    assert report.outcome.state == "active"
    assert (report.again.state, report.again.detail) == (
        "failed",
        "the first call gave a_plugin.One, the second one a_plugin.Other",
    )


STAT_LOGGER = """
from vllm_ext import StatLoggerBase
class Logger(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0): ...
    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0): ...
    def log_engine_initialized(self): ...
"""


@pytest.mark.parametrize(
    ("code", "group", "value"),
    [("", GENERAL, "a_plugin"), (STAT_LOGGER, STAT_LOGGER_PLUGINS_GROUP, "a_plugin:Logger")],
)
def test_a_module_and_a_class_are_not_called_twice(load_twice, code, group, value):
    report = load_twice(code, group, value)

    assert (report.outcome.state, report.again) == ("active", None)


def test_one_that_fails_is_not_called_again(load_twice):
    report = load_twice("def register(): raise OSError(count())")

    assert (report.outcome.detail, report.again) == ("OSError: 1", None)


def test_a_platform_is_made_twice(load_twice):
    code = "def register(): return None if count() > 1 else 'vllm_ext.platforms.cpu.CpuPlatform'"

    report = load_twice(code, PLATFORM, platform__driver="a")

    assert report.outcome.state == "active"
    assert (report.again.state, report.again.detail) == ("unavailable", "it returned None: not for this machine")


REGISTERS = """
def register():
    from vllm_ext import ModelRegistry, TokenizerRegistry
    from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum, register_backend
    ModelRegistry.register_model("MyForCausalLM", "a_plugin:My")
    ModelRegistry.register_model("LlamaForCausalLM", "a_plugin:My")
    TokenizerRegistry.register("mine", "a_plugin", "My")
    register_backend(AttentionBackendEnum.SDPA, "a_plugin.Attention")
    register_backend(AttentionBackendEnum.CUSTOM, "a_plugin.Attention")
"""


def test_what_it_registers_is_told_with_what_it_replaces(load_twice):
    report = load_twice(REGISTERS)

    assert report.registered == (
        "replaces model architecture 'LlamaForCausalLM' of vllm_ext itself with a_plugin:My",
        "adds model architecture 'MyForCausalLM': a_plugin:My",
        "adds attention backend 'CUSTOM': a_plugin.Attention",
        "replaces attention backend 'SDPA' of vllm_ext itself with a_plugin.Attention",
        "adds tokenizer mode 'mine': a_plugin:My",
    )
    assert (report.imports_torch, report.again.state) == (False, "active")


def test_ops_that_take_the_place_of_others_are_told_of_and_in_tree_ones_are_nobodys(plugins, make_plan):
    """In-tree ops are registered when their modules are imported, which happens while this plugin is loaded."""
    plugins.project("vllm_ext_dummy_platform")
    plan = make_plan()

    report = load_in_child(plan, plan.find("general", "dummy_ops")[0], 60)

    ops = {sentence.partition(" of ")[0] for sentence in report.registered}
    assert {"replaces custom op 'rms_norm'", "replaces custom op 'silu_and_mul'"} <= ops
    assert {sentence.partition("'")[0] for sentence in report.registered} == {"replaces custom op "}
    assert (report.imports_torch, report.again) == (True, None)


def test_what_somebody_else_registers_meanwhile_is_told_with_their_name(plugins, load_twice):
    plugins.distribution("zeta", {}, {"zeta.py": ""})
    (plugins.site / "zeta-0.1.dist-info" / "RECORD").write_text("zeta.py,,\n")
    code = (
        "def register():\n    import threading, zeta\n    t = threading.Thread(target=zeta.add); t.start(); t.join()\n"
    )
    (plugins.site / "zeta.py").write_text(
        "from vllm_ext import TokenizerRegistry\ndef add(): TokenizerRegistry.register('late', 'zeta', 'Late')\n"
    )

    assert load_twice(code).registered == (
        "adds tokenizer mode 'late': zeta:Late; it was registered by zeta (module zeta)",
    )
