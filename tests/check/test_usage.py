"""An engine that is watched, and nothing that stays watched after it."""

from __future__ import annotations

import pytest
from torch.nn.modules import module as torch_module

from vllm_ext.check.usage import NUM_TOKENS, Usage, WatchedDispatcher, run_a_little
from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.errors import ConfigError


def bootstrapped(**settings):
    values = {"platform.driver": "cpu", **{key.replace("__", "."): value for key, value in settings.items()}}
    return bootstrap(load_config(overrides=[Override(key, value, "test") for key, value in values.items()]))


@pytest.fixture
def started(random_llama):
    return bootstrapped(engine__model=str(random_llama))


def test_methods_are_counted_by_name(started):
    usage = Usage()

    run_a_little(WatchedDispatcher(started.binding, started.config, usage), usage)

    calls = usage.in_steps["worker", "vllm_ext.worker.worker.Worker"]
    assert calls["sample_tokens"] == NUM_TOKENS
    assert usage.at_start["worker", "vllm_ext.worker.worker.Worker"] == 1
    assert usage.at_start["platform", "vllm_ext.platforms.cpu.CpuPlatform"] > 0


def test_ops_are_counted_in_every_step_and_none_is_replayed(started):
    usage = Usage()

    run_a_little(WatchedDispatcher(started.binding, started.config, usage), usage)

    num_layers, calls = usage.by(lambda module: type(module).__name__)["SiluAndMul"]
    assert calls == NUM_TOKENS * num_layers


def test_a_model_that_pools_is_watched_while_it_pools(random_llama):
    started = bootstrapped(engine__model=str(random_llama), engine__runner="pooling")
    usage = Usage()

    run_a_little(WatchedDispatcher(started.binding, started.config, usage), usage)

    calls = usage.in_steps["worker", "vllm_ext.worker.worker.Worker"]
    # One with the prompt, and one that tells the worker that it has ended.
    assert calls["execute_model"] == 2
    assert not calls["sample_tokens"]


def test_afterwards_nothing_is_counted(started):
    platform = started.binding.platform
    before, hooks = dict(vars(platform)), len(torch_module._global_forward_pre_hooks)
    usage = Usage()

    run_a_little(WatchedDispatcher(started.binding, started.config, usage), usage)
    counted = usage.at_start.total()
    platform.is_pin_memory_available()

    assert vars(platform) == before
    assert len(torch_module._global_forward_pre_hooks) == hooks
    assert usage.at_start.total() == counted


def test_nor_after_an_engine_that_did_not_start():
    started = bootstrapped(custom_ops=["all", "none"])
    before = dict(vars(started.binding.platform))

    with pytest.raises(ConfigError, match="both all and none"):
        WatchedDispatcher(started.binding, started.config, Usage())

    assert vars(started.binding.platform) == before
