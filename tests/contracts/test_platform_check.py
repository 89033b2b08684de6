"""What is wrong with a platform's class is found when it is bound: all of it, by name, and nothing that is meant so."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

from vllm_ext import Platform, PlatformEnum
from vllm_ext.contracts.platform_check import CALLS, METHODS, NOT_CALLED, check_platform
from vllm_ext.platforms.cpu import CpuPlatform


class Whole(Platform):
    _enum = PlatformEnum.OOT
    device_name = device_type = "cpu"

    @classmethod
    def check_and_update_config(cls, vllm_config): ...

    @classmethod
    def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None): ...

    @classmethod
    def get_device_name(cls, device_id=0): ...

    @classmethod
    def get_device_total_memory(cls, device_id=0): ...


def check(**members):
    """A platform that is whole but for what the members replace."""
    return check_platform(type("Npu", (Whole,), members)())


@pytest.mark.parametrize("platform", [Whole, CpuPlatform])
def test_a_whole_platform_has_no_problems(platform):
    assert check_platform(platform()) == ([], [])


def test_all_that_is_missing_is_named_at_once():
    class Empty(Platform):
        _enum = "npu"

    errors, warnings = check_platform(Empty())

    assert errors == [
        "does not set _enum, device_type, device_name; _enum has to be a PlatformEnum, device_type and device_name "
        "have to be strings",
        "does not implement check_and_update_config, get_attn_backend_cls, get_device_name, get_device_total_memory",
    ]
    assert warnings == []


def test_what_is_missing_is_told_with_what_is_there_in_its_place():
    class Misspelt(Platform):
        _enum = PlatformEnum.OOT
        device_name = device_typ = "cpu"

        @classmethod
        def check_and_update_configs(cls, vllm_config): ...

        @classmethod
        def get_attention_backend_cls(cls, *args): ...

    errors, warnings = check_platform(Misspelt())

    assert "does not set device_type (it defines 'device_typ'; did you mean 'device_type'?)" in errors[0]
    assert "'check_and_update_configs'; did you mean 'check_and_update_config'?" in errors[1]
    assert "'get_attention_backend_cls'; did you mean 'get_attn_backend_cls'?" in errors[1]
    assert warnings == []


@pytest.mark.parametrize(
    "name, meant",
    [
        ("apply_config_platform_default", "apply_config_platform_defaults"),
        ("get_device_communicator", "get_device_communicator_cls"),
        ("is_pin_memory_avaliable", "is_pin_memory_available"),
        ("update_blocksize_for_backend", "update_block_size_for_backend"),
        ("supported_dtype", "supported_dtypes"),
        ("support_hybrid_kvcache", "support_hybrid_kv_cache"),
        ("dispach_key", "dispatch_key"),
        ("validate_requests", "validate_request"),
    ],
)
def test_a_name_that_is_nearly_one_of_the_contract_is_a_warning(name, meant):
    errors, warnings = check(**{name: classmethod(lambda cls: None)})

    assert (errors, warnings) == ([], [f"defines {name!r}, which is no name of the contract; did you mean {meant!r}?"])


@pytest.mark.parametrize(
    "name",
    ["is_npu", "is_xpu_alike", "get_driver_version", "get_device_count", "get_device_names", "get_soc_name",
     "device_memory_pool", "get_num_devices", "supports_graphs", "_set_devices", "get_block_size", "npu_log_level",
     *sorted(NOT_CALLED)],
)  # fmt: skip
def test_helpers_of_its_own_and_names_of_vllms_are_left_alone(name):
    assert check(**{name: classmethod(lambda cls: None)}) == ([], [])


def test_a_name_beside_the_method_that_it_is_like_is_no_misspelling():
    def seeds(cls, seed): ...

    assert check(manual_seed_all=classmethod(seeds), manual_seeds_all=classmethod(seeds)).warnings == []


@pytest.mark.parametrize(
    "name, method, complaint",
    [
        ("get_device_name", lambda cls: "npu",
         "defines get_device_name(), which is called as get_device_name(device_id): too many positional arguments"),
        ("check_and_update_config", lambda cls, config, parser: None,
         "defines check_and_update_config(config, parser), which is called as check_and_update_config(vllm_config): "
         "missing a required argument: 'parser'"),
        ("validate_environ", lambda cls, fail: None,
         "defines validate_environ(fail), which is called as validate_environ(hard_fail=...): "
         "missing a required argument: 'fail'"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_called_is_an_error(name, method, complaint):
    assert check(**{name: classmethod(method)}).errors == [complaint]


def test_other_names_of_parameters_and_more_of_them_are_fine():
    def renamed(cls, config, *extra, **options): ...

    assert check(check_and_update_config=classmethod(renamed)) == ([], [])


def test_what_a_decorator_made_of_a_method_counts():
    def for_two(cls, config, parser): ...

    @functools.wraps(for_two)
    def adapted(cls, config):
        return for_two(cls, config, None)

    assert check(check_and_update_config=classmethod(adapted)) == ([], [])


def test_a_method_may_be_one_of_the_instance():
    assert check(get_device_name=lambda self, device_id=0: "npu") == ([], [])


def test_a_value_in_place_of_a_method_and_a_method_in_place_of_a_property_are_errors():
    assert check(support_hybrid_kv_cache=True).errors == [
        "defines support_hybrid_kv_cache as True; it has to be a method"
    ]
    assert check(supported_dtypes=lambda self: []).errors == [
        "defines supported_dtypes as a method; it has to be a property or a list"
    ]


def test_the_calls_are_those_of_the_contract():
    assert set(METHODS) - {"get_attn_backend_cls"} <= set(CALLS)
    assert all(callable(getattr(Platform, name)) for name in CALLS)
    assert not NOT_CALLED & set(CALLS)


class TestDeviceType:
    def test_privateuseone_is_a_device_type_of_torch(self):
        assert check(device_type="privateuseone", device_name="privateuseone:0") == ([], [])

    def test_one_that_torch_does_not_know_is_refused_with_the_way_to_make_it_known(self):
        (error,) = check(device_type="npu").errors

        assert error.startswith("has device_type 'npu', which is no device type of torch ")
        assert "'privateuseone', the one that is free for backends out of tree" in error
        assert "torch.utils.rename_privateuse1_backend('npu')" in error

    def test_a_device_is_no_device_type(self):
        (error,) = check(device_type="cpu:0").errors

        assert "device_type 'cpu:0', which is no device type" in error

    def test_the_name_that_the_free_one_was_given_is_accepted(self):
        # In a process of its own: torch can rename it once, for good.
        code = (
            "import torch; torch.utils.rename_privateuse1_backend('npu')\n"
            "from vllm_ext.contracts.platform_check import check_platform\n"
            "from vllm_ext.platforms.cpu import CpuPlatform\n"
            "class Npu(CpuPlatform): device_type = device_name = 'npu'\n"
            "class Tpu(CpuPlatform): device_type = device_name = 'tpu'\n"
            "print(check_platform(Npu()).errors, check_platform(Tpu()).errors)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout.startswith("[] [")
        assert "'npu', the one that is free for backends out of tree" in done.stdout

    def test_an_ordinary_one_is_known_without_torch(self):
        code = (
            "import sys\n"
            "from vllm_ext.contracts.platform import Platform, PlatformEnum\n"
            "from vllm_ext.contracts.platform_check import check_platform\n"
            "class Npu(Platform): device_type = device_name = 'cpu'; _enum = PlatformEnum.OOT\n"
            "check_platform(Npu())\n"
            "print('torch' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout == "False\n"
