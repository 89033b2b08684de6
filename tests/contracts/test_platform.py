"""What a platform answers where it overrides nothing, and what follows from the little that it does say."""

from __future__ import annotations

import platform as python_platform
import sys

import pytest
import torch

from vllm_ext import Platform, PlatformEnum
from vllm_ext.contracts.device import CpuArchEnum, cpu_architecture, in_wsl
from vllm_ext.contracts.platform import DeviceCapability


class Npu(Platform):
    _enum = PlatformEnum.OOT
    device_name = device_type = "cpu"
    device_control_env_var = "NPU_VISIBLE_DEVICES"

    @classmethod
    def get_device_capability(cls, device_id=0):
        return DeviceCapability(8, 6) if device_id == 0 else DeviceCapability(10, 3)


class TestCapability:
    def test_it_is_ordered_like_a_tuple(self):
        assert DeviceCapability(8, 6) < DeviceCapability(8, 10) < DeviceCapability(9, 0)
        assert DeviceCapability(9, 0) > (8, 9)
        assert {DeviceCapability(9, 0): 1}[9, 0] == 1

    def test_its_forms(self):
        assert (DeviceCapability(8, 6).as_version_str(), DeviceCapability(10, 3).to_int()) == ("8.6", 103)

    def test_a_minor_part_of_two_digits_has_no_number(self):
        with pytest.raises(ValueError, match=r"capability 8\.10 has no form as one number"):
            DeviceCapability(8, 10).to_int()

    @pytest.mark.parametrize("capability, expected", [((8, 0), True), ((8, 6), True), ((8, 7), False), (86, True),
                                                      (90, False)])  # fmt: skip
    def test_at_least(self, capability, expected):
        assert Npu.has_device_capability(capability) is expected

    @pytest.mark.parametrize("capability, expected", [((8, 6), True), (86, True), ((8, 0), False), (80, False)])
    def test_exactly(self, capability, expected):
        assert Npu.is_device_capability(capability) is expected

    def test_family(self):
        assert Npu.is_device_capability_family(100, device_id=1)
        assert not Npu.is_device_capability_family(90, device_id=1)

    def test_without_the_concept_every_answer_is_no(self):
        assert Platform.get_device_capability() is None
        assert not Platform.has_device_capability(0)
        assert not Platform.is_device_capability((0, 0))
        assert not Platform.is_device_capability_family(0)


class TestWhichDevice:
    def test_without_the_variable_numbers_are_the_machines(self):
        assert Npu.device_id_to_physical_device_id(3) == 3

    def test_the_variable_lists_the_devices_of_the_machine(self, monkeypatch):
        monkeypatch.setenv("NPU_VISIBLE_DEVICES", "4, 7")

        assert [Npu.visible_device_id_to_physical_device_id(i) for i in (0, 1)] == [4, 7]
        assert Npu.device_id_to_physical_device_id(1) == 7

    def test_more_than_it_lists_is_an_error_with_what_it_says(self, monkeypatch):
        monkeypatch.setenv("NPU_VISIBLE_DEVICES", "4,7")

        with pytest.raises(ValueError, match=r"device 2 is asked for, and NPU_VISIBLE_DEVICES shows 2 \('4,7'\)"):
            Npu.device_id_to_physical_device_id(2)

    def test_a_name_is_an_error_unless_the_platform_knows_it(self, monkeypatch):
        class Named(Npu):
            @classmethod
            def device_control_id_to_physical_device_id(cls, device_id):
                return {"left": 0, "right": 1}[device_id]

        monkeypatch.setenv("NPU_VISIBLE_DEVICES", "right")

        assert Named.device_id_to_physical_device_id(0) == 1
        with pytest.raises(ValueError, match="NPU_VISIBLE_DEVICES names device 'right'; platform .*Npu takes numbers"):
            Npu.device_id_to_physical_device_id(0)

    def test_the_processor_needs_no_setting_and_other_devices_do(self):
        Npu.set_device(torch.device("cpu"))

        with pytest.raises(NotImplementedError, match=r"Npu does not implement set_device\(\)"):
            Npu.set_device(torch.device("privateuseone", 0))


class TestDefaults:
    def test_kinds_follow_from_the_enum(self):
        kinds = {
            name: getattr(Npu(), name)()
            for name in ("is_cuda", "is_rocm", "is_tpu", "is_xpu", "is_cpu", "is_out_of_tree", "is_unspecified",
                         "is_cuda_alike", "is_sleep_mode_available")
        }  # fmt: skip

        assert [name for name, answer in kinds.items() if answer] == ["is_out_of_tree"]

    @pytest.mark.parametrize("kind", [PlatformEnum.CUDA, PlatformEnum.ROCM, PlatformEnum.XPU])
    def test_sleep_mode_is_there_where_vllm_has_it(self, kind):
        assert type("P", (Npu,), {"_enum": kind})().is_sleep_mode_available()

    def test_a_request_may_be_as_long_as_it_likes(self):
        assert Npu().get_max_output_tokens(10) == sys.maxsize

    def test_dtypes_begin_with_the_fallback(self):
        assert Npu().supported_dtypes == [torch.bfloat16, torch.float16, torch.float32]

    def test_nothing_that_needs_support_is_there(self):
        assert not Npu.support_hybrid_kv_cache()
        assert not Npu.support_static_graph_mode()

    def test_steps_record_no_gradients(self):
        with Npu.inference_mode():
            assert torch.is_inference_mode_enabled()

    def test_what_has_no_default_names_platform_and_method(self):
        for call in (Npu.get_device_name, Npu.get_device_total_memory, Npu.get_current_memory_usage):
            with pytest.raises(NotImplementedError, match=rf"Npu does not implement {call.__name__}\(\)"):
                call()

    @pytest.mark.parametrize("release, can_pin", [("5.15.0-microsoft-standard-WSL2", False), ("6.1.0-amd64", True)])
    def test_host_memory_can_be_pinned_but_for_wsl(self, monkeypatch, release, can_pin):
        monkeypatch.setattr(python_platform, "uname", lambda: ("Linux", "host", release, "#1", "x86_64"))

        assert (Npu.is_pin_memory_available(), in_wsl()) == (can_pin, not can_pin)


class TestFunctionsOfTheDevice:
    def test_they_come_from_torch_also_where_the_device_type_is_a_property(self):
        class WithProperty(Npu):
            device_type = property(lambda self: "cpu")

        assert WithProperty().current_device is torch.cpu.current_device
        with pytest.raises(AttributeError, match="WithProperty has no attribute 'no_such_function'"):
            WithProperty().no_such_function  # noqa: B018 - the look-up is what is tested

    def test_without_a_device_type_there_are_none(self):
        with pytest.raises(AttributeError, match="Platform has no attribute 'synchronize'"):
            Platform().synchronize  # noqa: B018 - the look-up is what is tested


@pytest.mark.parametrize("machine, family", [
    ("x86_64", CpuArchEnum.X86), ("AMD64", CpuArchEnum.X86), ("i686", CpuArchEnum.X86), ("aarch64", CpuArchEnum.ARM),
    ("arm64", CpuArchEnum.ARM), ("ppc64le", CpuArchEnum.POWERPC), ("s390x", CpuArchEnum.S390X),
    ("riscv64", CpuArchEnum.RISCV), ("mips", CpuArchEnum.OTHER), ("", CpuArchEnum.UNKNOWN),
])  # fmt: skip
def test_families_of_processors(machine, family):
    assert cpu_architecture(machine) is family


def test_this_machine_has_a_family():
    assert Npu.get_cpu_architecture() is cpu_architecture(python_platform.machine())
