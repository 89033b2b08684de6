"""The choice of the platform: what is named has to work, what is merely found may fail, each is called once."""

from __future__ import annotations

import logging

import pytest
from support.distributions import PLATFORM

from vllm_ext.errors import AmbiguousPlugin, ContractError, PlatformUnavailable
from vllm_ext.managers import bind_platform

PLATFORM_CLASS = """
from vllm_ext.contracts.platform import Platform, PlatformEnum

class {name}(Platform):
    _enum = PlatformEnum.OOT
    device_type = "cpu"
    device_name = "{name}"
    check_and_update_config = get_attn_backend_cls = classmethod(lambda cls, *args, **kwargs: "")
    get_device_name = classmethod(lambda cls, device_id=0: "a device")
    get_device_total_memory = classmethod(lambda cls, device_id=0: 1 << 30)
"""


@pytest.fixture
def install(plugins):
    """Install a platform plugin ``name`` whose ``register()`` has the given body; every call is counted."""

    def install(name: str, body: str, before: str = "", platform: str = "", group: str = PLATFORM) -> None:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        files = {
            f"{name}_plugin/__init__.py": f"{before}\ncalls = []\ndef register():\n    calls.append(1)\n{lines}\n",
            f"{name}_plugin/device.py": platform or PLATFORM_CLASS.format(name="Device"),
        }
        plugins.distribution(f"{name}_dist", {group: [f"{name} = {name}_plugin:register"]}, files)

    return install


def activates(name: str) -> str:
    return f"return '{name}_plugin.device.Device'"


def states(binding) -> dict[str, str]:
    return {outcome.key.name: outcome.state for outcome in binding.bound_plan.outcomes}


def num_calls(name: str) -> int:
    return len(__import__(f"{name}_plugin").calls)


class TestAuto:
    def test_an_out_of_tree_one_that_activates_beats_in_tree_ones(self, install, make_plan):
        install("npu", activates("npu"))

        binding = bind_platform(make_plan())

        assert type(binding.platform).__module__ == "npu_plugin.device"
        assert binding.bound_plan.platform.name == "npu"
        assert states(binding) == {"npu": "active", "cpu": "passed_over"}
        assert num_calls("npu") == 1

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("return None", "it returned None: not for this machine"),
            ("from vllm_ext.errors import Unavailable\nraise Unavailable('no /dev/npu0')", "no /dev/npu0"),
        ],
    )
    def test_one_that_declines_makes_room_without_a_word(self, install, make_plan, caplog, body, reason):
        install("npu", body)

        with caplog.at_level(logging.WARNING):
            binding = bind_platform(make_plan())

        assert states(binding) == {"npu": "unavailable", "cpu": "active"}
        assert binding.bound_plan.outcomes[0].detail == reason
        assert binding.platform.is_cpu()
        assert caplog.text == ""
        assert num_calls("npu") == 1

    @pytest.mark.parametrize(
        ("body", "cause"),
        [
            ("raise OSError('driver too old')", "OSError: driver too old"),
            ("import sys\nsys.exit(3)", "SystemExit: 3"),
            ("assert 1 == 2, 'two'", "AssertionError: two"),
            ("raise BaseException", "BaseException"),
            ("return 7", "expected a class path 'package.module.Class', got 7"),
            ("return 'nothing'", "'nothing' is not a class path"),
            ("return 'npu_plugin.absent.Device'", "No module named 'npu_plugin.absent'"),
            ("from vllm.platforms import interface", "No module named 'vllm' (for this engine, import what plugins"),
            ("return 'npu_plugin.device.Devise'", "has no attribute 'Devise'"),
            ("return 'npu_plugin.register'", "is not a subclass of vllm_ext.contracts.platform.Platform"),
            ("from vllm_ext.contracts.current_platform import current_platform\ncurrent_platform.device_type",
             "platform plugin 'npu' asked for current_platform"),
        ],
    )  # fmt: skip
    def test_one_that_fails_is_warned_about_with_what_is_used_instead(self, install, make_plan, caplog, body, cause):
        install("npu", body)

        with caplog.at_level(logging.WARNING):
            binding = bind_platform(make_plan())

        assert states(binding) == {"npu": "failed", "cpu": "active"}
        (warning,) = caplog.messages
        assert warning.startswith("platform plugin 'npu' of npu-dist 0.1 failed: ")
        assert cause in warning
        assert warning.endswith("platform 'cpu' of vllm-ext 0.1.0 is used instead")
        assert "Traceback" in binding.bound_plan.outcomes[0].traceback

    def test_one_that_fails_is_warned_about_once_in_a_process(self, install, make_plan, caplog):
        install("npu", "raise OSError('driver too old')")

        bind_platform(make_plan())
        bind_platform(make_plan())

        assert len(caplog.messages) == 1

    @pytest.mark.parametrize(
        "before", ["import sys; sys.exit()", "assert False", "import does_not_exist", "1/0", "a b"]
    )
    def test_one_that_fails_at_import_is_no_different(self, install, make_plan, before):
        install("npu", activates("npu"), before=before)

        assert states(bind_platform(make_plan())) == {"npu": "failed", "cpu": "active"}

    def test_two_that_activate_are_an_error_with_the_lines_for_the_settings(self, install, make_plan):
        install("npu", activates("npu"))
        install("tpu", activates("tpu"))

        with pytest.raises(AmbiguousPlugin) as caught:
            bind_platform(make_plan())

        assert str(caught.value) == (
            "2 out-of-tree platforms can be used here: 'npu' of npu-dist 0.1, 'tpu' of tpu-dist 0.1. "
            "Choose one in the settings file:\n  platform: {driver: npu}\nor\n  platform: {driver: tpu}"
        )
        assert caught.value.exit_code == 2

    def test_the_line_tells_apart_what_has_the_name_of_an_in_tree_one(self, install, make_plan):
        install("npu", activates("npu"))
        install("cpu", activates("cpu"))

        with pytest.raises(AmbiguousPlugin, match="platform: {driver: cpu-dist:cpu}"):
            bind_platform(make_plan())

    def test_one_that_is_disabled_is_not_even_imported(self, install, make_plan):
        install("npu", activates("npu"), before="raise RuntimeError")

        assert states(bind_platform(make_plan(platform__disabled=["npu"]))) == {"cpu": "active"}

    def test_without_any_the_platform_is_unspecified(self, make_plan):
        binding = bind_platform(make_plan(platform__disabled=["cpu"]))

        assert binding.platform.is_unspecified()
        assert binding.bound_plan.platform is None

    def test_one_that_vllm_plugins_names_may_decline_but_not_fail(self, install, make_plan, caplog):
        install("npu", "return None")
        install("tpu", "raise OSError('broken')")

        assert bind_platform(make_plan(allow_list="npu")).platform.is_cpu()
        assert "platform plugin 'npu' of npu-dist 0.1 declined: it returned None" in caplog.text
        with pytest.raises(PlatformUnavailable, match="OSError: broken; it is named in VLLM_PLUGINS"):
            bind_platform(make_plan(allow_list="npu,tpu"))


class TestNamed:
    def test_it_is_used(self, install, make_plan):
        install("npu", activates("npu"))
        install("tpu", activates("tpu"), before="raise RuntimeError")

        binding = bind_platform(make_plan(platform__driver="npu"))

        assert binding.bound_plan.platform.name == "npu"
        assert states(binding) == {"npu": "active"}
        assert num_calls("npu") == 1

    def test_declining_is_an_error_with_the_reason(self, install, make_plan):
        install("npu", "from vllm_ext.errors import Unavailable\nraise Unavailable('no /dev/npu0')")

        with pytest.raises(PlatformUnavailable) as caught:
            bind_platform(make_plan(platform__driver="npu"))

        assert str(caught.value) == (
            "platform plugin 'npu' of npu-dist 0.1 declined: no /dev/npu0; it is named in platform.driver "
            "(command line (--set)), so nothing else is tried. "
            "A list permits that: platform: {driver: [npu, cpu]}"
        )
        assert (caught.value.exit_code, caught.value.plugin, caught.value.__cause__) == (3, "npu", None)

    def test_the_list_that_would_permit_others_names_cpu_so_that_it_is_one(self, plugins, install, make_plan):
        install("npu", "return None")
        plugins.distribution("acme", {PLATFORM: ["cpu = acme:register"]}, {})

        with pytest.raises(PlatformUnavailable) as caught:
            bind_platform(make_plan(platform__driver="npu"))

        assert str(caught.value).endswith("A list permits that: platform: {driver: [npu, vllm-ext:cpu]}")
        assert bind_platform(make_plan(platform__driver=["npu", "vllm-ext:cpu"])).bound_plan.platform.name == "cpu"

    def test_failing_is_an_error_with_what_the_plugin_raised_as_its_cause(self, install, make_plan):
        install("npu", "raise OSError('driver too old')")

        with pytest.raises(PlatformUnavailable, match="failed: OSError: driver too old") as caught:
            bind_platform(make_plan(platform__driver="npu"))

        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.__traceback__ is not None

    def test_a_wrong_result_is_a_breach_of_the_contract(self, install, make_plan):
        install("npu", "return 7")

        with pytest.raises(PlatformUnavailable, match="'npu' of npu-dist") as caught:
            bind_platform(make_plan(platform__driver="npu"))

        assert isinstance(caught.value.__cause__, ContractError)

    def test_an_interrupt_passes(self, install, make_plan):
        install("npu", "raise KeyboardInterrupt")

        with pytest.raises(KeyboardInterrupt):
            bind_platform(make_plan(platform__driver="npu"))

    def test_both_spellings_of_a_class_path_are_accepted(self, install, make_plan):
        install("npu", "return 'npu_plugin.device:Device'")

        assert bind_platform(make_plan(platform__driver="npu")).platform.device_name == "Device"

    @pytest.mark.parametrize(
        ("attributes", "missing"),
        [
            ("device_type = device_name = 'cpu'", "_enum"),
            ("_enum = PlatformEnum.OOT; device_type = 'cpu'", "device_name"),
            ("_enum = PlatformEnum.OOT; device_type = 3; device_name = ''", "device_type, device_name"),
        ],
    )
    def test_a_platform_has_to_say_which_device_it_is(self, install, make_plan, attributes, missing):
        header = "from vllm_ext.contracts.platform import Platform, PlatformEnum\n"
        install("npu", activates("npu"), platform=f"{header}class Device(Platform):\n    {attributes}\n")

        with pytest.raises(PlatformUnavailable, match=f"npu_plugin.device.Device does not set {missing};"):
            bind_platform(make_plan(platform__driver="npu"))


class TestList:
    def test_the_first_that_activates_wins_and_the_rest_is_not_imported(self, install, make_plan):
        install("one", "return None")
        install("two", activates("two"))
        install("three", activates("three"), before="raise RuntimeError")

        binding = bind_platform(make_plan(platform__driver=["one", "two", "three"]))

        assert states(binding) == {"one": "unavailable", "two": "active", "three": "passed_over"}
        assert binding.bound_plan.platform.name == "two"

    def test_its_order_is_the_users(self, install, make_plan):
        install("npu", activates("npu"))

        assert bind_platform(make_plan(platform__driver=["cpu", "npu"])).bound_plan.platform.name == "cpu"

    def test_one_that_failed_is_warned_about(self, install, make_plan, caplog):
        install("npu", "raise OSError('driver too old')")

        bind_platform(make_plan(platform__driver=["npu", "cpu"]))

        assert "platform plugin 'npu' of npu-dist 0.1 failed: OSError: driver too old; platform 'cpu'" in caplog.text

    def test_none_that_activates_is_an_error_with_every_reason(self, install, make_plan):
        install("one", "return None")
        install("two", "raise OSError('driver too old')")

        with pytest.raises(PlatformUnavailable) as caught:
            bind_platform(make_plan(platform__driver=["one", "two"]))

        assert str(caught.value) == (
            "none of the platform plugins named in platform.driver (command line (--set)) can be used: "
            "'one' of one-dist 0.1 declined: it returned None: not for this machine; "
            "'two' of two-dist 0.1 failed: OSError: driver too old"
        )
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.exit_code == 3


def test_the_bound_plan_has_the_versions_it_runs_on(make_plan):
    versions = bind_platform(make_plan()).bound_plan.versions

    assert set(versions) == {"vllm_ext", "python", "torch"}
    assert all(versions.values())


class TestContract:
    BASE = "from vllm_ext import PlatformEnum, Platform\nfrom vllm_ext.platforms.cpu import CpuPlatform\n"

    def install_class(self, install, members: str, base: str = "CpuPlatform") -> None:
        install(
            "npu",
            activates("npu"),
            platform=f"{self.BASE}class Device({base}):\n    _enum = PlatformEnum.OOT\n{members}",
        )

    def test_everything_that_makes_it_useless_is_in_one_error(self, install, make_plan):
        self.install_class(install, "    device_name = device_typ = 'npu'\n    def set_device(self): ...\n", "Platform")

        with pytest.raises(PlatformUnavailable) as caught:
            bind_platform(make_plan(platform__driver="npu"))

        text = str(caught.value)
        assert "npu_plugin.device.Device does not set device_type (it defines 'device_typ'; did you mean" in text
        assert "It does not implement check_and_update_config, get_attn_backend_cls, get_device_name" in text
        assert "It defines set_device(), which is called as set_device(device)" in text

    def test_a_device_type_that_torch_does_not_know_is_refused(self, install, make_plan, caplog):
        self.install_class(install, "    device_type = device_name = 'npu'\n")

        assert bind_platform(make_plan()).platform.is_cpu()
        assert "npu_plugin.device.Device has device_type 'npu', which is no device type of torch" in caplog.text

    def test_a_device_type_for_backends_out_of_tree_is_accepted(self, install, make_plan):
        self.install_class(install, "    device_type = device_name = 'privateuseone'\n")

        assert bind_platform(make_plan()).platform.device_type == "privateuseone"

    def test_a_probable_misspelling_is_warned_about_once(self, install, make_plan, caplog):
        self.install_class(install, "    def log_warning(self): ...\n")

        bind_platform(make_plan())
        bind_platform(make_plan())

        assert caplog.messages == [
            "platform plugin 'npu' of npu-dist 0.1 defines 'log_warning', which is no name of the contract; did you "
            "mean 'log_warnings'?"
        ]

    def test_one_that_is_not_chosen_is_not_complained_about(self, install, make_plan, caplog):
        self.install_class(install, "    def log_warning(self): ...\n")

        bind_platform(make_plan(platform__driver="cpu"))

        assert caplog.messages == []

    @pytest.mark.parametrize(
        "settings, members",
        [
            ({"worker__cls": "a.Worker", "attention__backend": "a.Backend"}, ""),
            ({"attention__backend": "a.Backend"}, "    def apply_config_platform_defaults(self, vllm_config): ...\n"),
        ],
    )
    def test_what_settings_or_another_hook_choose_need_not_be_chosen(self, install, make_plan, settings, members):
        members += "    device_type = device_name = 'cpu'\n"
        members += "    def get_device_name(self, device_id=0): ...\n"
        members += "    def get_device_total_memory(self, device_id=0): ...\n"
        self.install_class(install, members, "Platform")

        with pytest.raises(PlatformUnavailable, match=r"does not implement .*get_attn_backend_cls"):
            bind_platform(make_plan(platform__driver="npu"))
        assert bind_platform(make_plan(platform__driver="npu", **settings)).platform.is_out_of_tree()
