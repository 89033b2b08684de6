"""A platform's hooks: their order, and the record of what they changed."""

import dataclasses

import pytest
import torch

from vllm_ext import Platform, PlatformEnum
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.config.schema import Settings
from vllm_ext.contracts.attention import MultipleOf
from vllm_ext.dispatch.engine_config import build_vllm_config
from vllm_ext.dispatch.hooks import Change, prepare_platform, run_platform_hooks, update_block_size
from vllm_ext.errors import ConfigError, PluginLoadError, UnsupportedModel


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
        repr(Change("cache_config.block_size", 16, 128, "platform:npu", "check_and_update_config")),
        repr(Change("parallel_config.worker_cls", "auto", "npu.Worker", "platform:npu", "check_and_update_config")),
        repr(Change("compilation_config.custom_ops", [], ["all"], "platform:npu", "check_and_update_config")),
    }


def test_a_change_of_the_models_configuration_is_recorded_and_made_once(caplog):
    class Rewriting(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            hf_config = vllm_config.model_config.hf_config
            hf_config.window_of_npu = hf_config.get("window_of_npu", 1) * 2

    config = build_vllm_config(Settings(), Rewriting())

    (change,) = run_platform_hooks(Rewriting(), config, "platform:npu")

    assert change[:3] == ("model_config.hf_config.window_of_npu", None, 2)
    assert config.model_config.hf_config.window_of_npu == 2, "the second run is one on a copy"
    assert "changes more in a second run: model_config.hf_config.window_of_npu from 2 to 4" in caplog.text


def test_a_value_that_cannot_be_compared_is_no_obstacle():
    class Keeping(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            vllm_config.additional_config["npu"] = torch.ones(2)

    config = build_vllm_config(Settings(), Keeping())
    config.additional_config["npu"] = torch.zeros(2)

    (change,) = run_platform_hooks(Keeping(), config, "platform:npu")

    assert change.path == "additional_config"


def test_a_platform_that_changes_nothing_leaves_no_record():
    assert run_platform_hooks(Quiet(), build_vllm_config(Settings(), Quiet()), "platform:npu") == ()


def test_a_change_has_the_hook_that_made_it_and_the_inner_path_of_what_was_added():
    class Early(Busy):
        @classmethod
        def apply_config_platform_defaults(cls, vllm_config):
            vllm_config.cache_config.block_size = 32
            vllm_config.additional_config["npu"] = {"batch": 4}

    changes = run_platform_hooks(Early(), build_vllm_config(Settings(), Early()), "platform:npu")

    assert [(c.path, c.before, c.after, c.hook) for c in changes if c.path in ("cache_config.block_size",)] == [
        ("cache_config.block_size", 16, 32, "apply_config_platform_defaults"),
        ("cache_config.block_size", 32, 128, "check_and_update_config"),
    ]
    assert Change(
        "additional_config", {}, {"npu": {"batch": 4}}, "platform:npu", "apply_config_platform_defaults"
    ) in list(changes)


def test_a_hook_that_changes_more_in_a_second_run_is_named_and_the_first_run_holds(caplog):
    config = build_vllm_config(Settings(), Busy())

    run_platform_hooks(Busy(), config, "platform:npu")

    assert caplog.messages == [
        "platform:npu: check_and_update_config() changes more in a second run: compilation_config.custom_ops from "
        "['all'] to ['all', 'all']. It has to be idempotent, since vLLM runs it more than once"
    ]
    assert config.compilation_config.custom_ops == ["all"]


def test_a_change_inside_of_a_mapping_in_a_second_run_is_noticed(caplog):
    class Counting(Quiet):
        @classmethod
        def apply_config_platform_defaults(cls, vllm_config):
            counts = vllm_config.additional_config.setdefault("npu", {"runs": []})
            counts["runs"].append(1)

    config = build_vllm_config(Settings(), Counting())
    run_platform_hooks(Counting(), config, "platform:npu")

    assert "apply_config_platform_defaults() changes more in a second run: additional_config from" in caplog.text
    assert config.additional_config == {"npu": {"runs": [1]}}


def test_the_secrets_among_options_are_not_in_what_is_said_of_a_second_run(caplog):
    class Counting(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            options = vllm_config.additional_config["npu"]
            options["runs"] = options.get("runs", 0) + 1

    config = build_vllm_config(Settings(), Counting())
    config.additional_config["npu"] = {"api_key": "hunter2"}
    run_platform_hooks(Counting(), config, "platform:npu")

    assert "from {'npu': {'api_key': '********', 'runs': 1}} to {'npu': {'api_key': '********', 'runs'" in caplog.text


def test_a_hook_that_fails_in_a_second_run_is_named(caplog):
    class Once(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            assert vllm_config.parallel_config.worker_cls == "auto", "the worker is set already"
            vllm_config.parallel_config.worker_cls = "npu.Worker"

    run_platform_hooks(Once(), build_vllm_config(Settings(), Once()), "platform:npu")

    assert "check_and_update_config() fails in a second run: AssertionError: the worker is set already" in caplog.text


def test_hooks_that_set_the_same_again_leave_no_word(caplog):
    class Idempotent(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            vllm_config.parallel_config.worker_cls = "npu.Worker"

    run_platform_hooks(Idempotent(), build_vllm_config(Settings(), Idempotent()), "platform:npu")

    assert caplog.messages == []


@pytest.mark.parametrize("supported, mode", [(True, "FULL_AND_PIECEWISE"), (False, "NONE")])
def test_a_worker_may_capture_graphs_where_its_platform_supports_them(supported, mode):
    class Graphs(Quiet):
        @classmethod
        def support_static_graph_mode(cls):
            return supported

        @classmethod
        def check_and_update_config(cls, vllm_config):
            seen.append(vllm_config.compilation_config.cudagraph_mode)

    seen = []
    run_platform_hooks(Graphs(), build_vllm_config(Settings(), Graphs()), "platform:npu")

    assert set(seen) == {mode}


def test_a_platform_can_refuse_a_quantization_method_by_its_list():
    class Picky(Quiet):
        supported_quantization = ("int8", "fp8")

    Picky.verify_quantization("fp8")
    Quiet.verify_quantization("whatever")
    with pytest.raises(
        ConfigError, match="quantization 'awq' is not supported by platform 'npu' .*; supported: fp8, int"
    ):
        Picky.verify_quantization("awq")


def test_the_environment_is_looked_at_as_vllm_does_by_default():
    class Looking(Quiet):
        @classmethod
        def validate_environ(cls, hard_fail):
            seen.append(hard_fail)

    seen = []
    prepare_platform(Looking())

    assert seen == [False]


class Layer:
    """An attention layer whose backend takes blocks of certain sizes."""

    def __init__(self, *sizes):
        self.attn_backend = type(
            "Backend", (), {"supports_block_size": lambda size: size in sizes, "get_name": lambda: "NPU_ATTN"}
        )


def config_with(*layers, **cache):
    config = build_vllm_config(Settings(), Quiet())
    config.compilation_config.static_forward_context.update({str(i): layer for i, layer in enumerate(layers)})
    config.cache_config = dataclasses.replace(config.cache_config, **cache)
    return config


def test_blocks_get_a_size_that_all_layers_of_the_model_support():
    config = config_with(Layer(64, 128), Layer(32, 128))

    changes = update_block_size(Quiet(), config, "platform:npu")

    assert config.cache_config.block_size == 128
    assert changes == (Change("cache_config.block_size", 16, 128, "platform:npu", "update_block_size_for_backend"),)


def test_a_size_that_is_supported_stays():
    config = config_with(Layer(16, 128))

    assert update_block_size(Quiet(), config, "platform:npu") == ()
    assert config.cache_config.block_size == 16


@pytest.mark.parametrize("cache", [{"user_specified_block_size": True}, {"block_size": 24}])
def test_a_size_that_a_layer_does_not_support_is_refused(cache):
    config = config_with(Layer(64), **cache)

    with pytest.raises(ConfigError, match=r"'NPU_ATTN' of layer '0' does not support KV cache blocks of (16|24) tok"):
        update_block_size(Quiet(), config, "platform:npu")


def declaring(*sizes):
    """A layer whose backend takes multiples of ``sizes``."""
    layer = Layer()
    layer.attn_backend = type(
        "Declaring", (SDPABackend,), {"get_supported_kernel_block_sizes": staticmethod(lambda: sizes)}
    )
    return layer


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ([[48]], 48),
        ([[12]], 24),
        ([[100, 24]], 24),
        ([[24], [40, 36]], 72),
        ([[MultipleOf(24)], [16]], 48),
    ],
)
def test_a_size_that_no_doubling_meets_is_the_smallest_that_all_layers_support(layers, chosen):
    config = config_with(*(declaring(*sizes) for sizes in layers))

    update_block_size(Quiet(), config, "platform:npu")

    assert config.cache_config.block_size == chosen


@pytest.mark.parametrize(
    ("sizes", "supported"),
    [
        ([48], "a multiple of 48$"),
        ([MultipleOf(24), 100], "a multiple of 24 or a multiple of 100$"),
        ([], "nothing that it declares$"),
    ],
)
def test_the_refusal_of_a_size_has_those_that_are_supported(sizes, supported):
    config = config_with(declaring(*sizes), user_specified_block_size=True)

    with pytest.raises(ConfigError, match=f"set engine.block_size to a size that it supports: {supported}"):
        update_block_size(Quiet(), config, "platform:npu")


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


@pytest.mark.parametrize("error", [ValueError("not for this device"), UnicodeError("not for this device")])
@pytest.mark.parametrize("hook", ["apply_config_platform_defaults", "check_and_update_config", "verify_model_arch"])
def test_a_hook_refuses_the_configuration_by_a_value_error(hook, error):
    def refuse(*_):
        raise error

    picky = type("Picky", (Quiet,), {hook: refuse})()

    with pytest.raises(ConfigError, match=r"^platform 'npu' \(.*\) refuses the configuration: not for this device$"):
        run_platform_hooks(picky, build_vllm_config(Settings(), Quiet()), "platform:npu")


def test_a_refusal_without_a_text_has_the_name_of_its_error():
    class Silent(Quiet):
        @classmethod
        def check_and_update_config(cls, vllm_config):
            raise ValueError

    with pytest.raises(ConfigError, match="refuses the configuration: ValueError$"):
        run_platform_hooks(Silent(), build_vllm_config(Settings(), Silent()), "platform:npu")


def test_a_platform_refuses_the_models_own_length():
    class Short(Quiet):
        @classmethod
        def check_max_model_len(cls, max_model_len):
            raise ValueError("at most 128 tokens")

    with pytest.raises(ConfigError, match="platform 'npu' .* refuses the configuration: at most 128 tokens$"):
        build_vllm_config(Settings(), Short())


def test_the_block_size_of_a_model_is_refused():
    class Unsized(Quiet):
        @classmethod
        def update_block_size_for_backend(cls, vllm_config):
            raise ValueError("no size fits")

    with pytest.raises(ConfigError, match="platform 'npu' .* refuses the configuration: no size fits$"):
        update_block_size(Unsized(), build_vllm_config(Settings(), Unsized()), "platform:npu")


def test_a_value_error_before_there_is_a_configuration_is_a_failure():
    class Early(Quiet):
        @classmethod
        def pre_register_and_update(cls, parser=None):
            int("x")

    with pytest.raises(PluginLoadError, match="platform 'npu' .* failed: ValueError: invalid literal"):
        prepare_platform(Early())
