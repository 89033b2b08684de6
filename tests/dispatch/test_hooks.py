"""A platform's hooks: their order, and the record of what they changed."""

import pytest

from vllm_ext import Platform, PlatformEnum
from vllm_ext.config.schema import Settings
from vllm_ext.dispatch.engine_config import build_vllm_config
from vllm_ext.dispatch.hooks import Change, run_platform_hooks
from vllm_ext.errors import PluginLoadError, UnsupportedModel


class Quiet(Platform):
    _enum = PlatformEnum.OOT
    device_name = "npu"
    device_type = "cpu"


class Busy(Quiet):
    @classmethod
    def check_and_update_config(cls, vllm_config):
        vllm_config.cache_config.block_size = 128
        vllm_config.parallel_config.worker_cls = "npu.Worker"
        vllm_config.compilation_config.custom_ops.append("all")


def test_what_a_hook_changed_is_recorded_with_its_origin():
    changes = run_platform_hooks(Busy(), build_vllm_config(Settings(), Busy()), "platform:npu")

    assert set(map(repr, changes)) == {
        repr(Change("cache_config.block_size", 16, 128, "platform:npu")),
        repr(Change("parallel_config.worker_cls", "auto", "npu.Worker", "platform:npu")),
        repr(Change("compilation_config.custom_ops", [], ["all"], "platform:npu")),
    }


def test_a_platform_that_changes_nothing_leaves_no_record():
    assert run_platform_hooks(Quiet(), build_vllm_config(Settings(), Quiet()), "platform:npu") == ()


def test_defaults_are_set_before_the_last_word():
    order = []

    class Ordered(Quiet):
        @classmethod
        def pre_register_and_update(cls, parser=None):
            order.append("pre_register_and_update")

        @classmethod
        def apply_config_platform_defaults(cls, vllm_config):
            order.append("apply_config_platform_defaults")

        @classmethod
        def check_and_update_config(cls, vllm_config):
            order.append("check_and_update_config")

    run_platform_hooks(Ordered(), build_vllm_config(Settings(), Ordered()), "platform:npu")

    assert order == ["pre_register_and_update", "apply_config_platform_defaults", "check_and_update_config"]


def test_a_platform_can_refuse_an_architecture():
    class Picky(Quiet):
        @classmethod
        def verify_model_arch(cls, model_arch):
            raise UnsupportedModel(f"{model_arch} does not run here")

    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM does not run here"):
        run_platform_hooks(Picky(), build_vllm_config(Settings(), Picky()), "platform:npu")


@pytest.mark.parametrize(
    "error, cause",
    [(SystemExit(0), "SystemExit: 0"), (AssertionError(), "AssertionError"), (KeyError("x"), "KeyError")],
)
def test_a_hook_that_exits_or_asserts_is_an_error_that_names_the_platform(error, cause):
    class Quitter(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            raise error

    with pytest.raises(PluginLoadError, match=f"platform 'npu' .*Quitter.* failed: {cause}"):
        run_platform_hooks(Quitter(), build_vllm_config(Settings(), Quitter()), "platform:npu")
