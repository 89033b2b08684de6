"""Which attention backend an engine takes, and the record of what was considered besides."""

from __future__ import annotations

import pytest
import torch
from support.device import BACKEND_OF_CPU
from support.distributions import config
from support.plugins import PluginInstaller

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.reference import ReferenceBackend
from vllm_ext.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.platform import AttentionSelectorConfig, DeviceCapability
from vllm_ext.dispatch.attention_choice import AttentionChoice, Considered
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.errors import ConfigError, ContractError
from vllm_ext.managers import PlatformBinding
from vllm_ext.plan import resolve
from vllm_ext.platforms.cpu import CpuPlatform

LAYER = AttentionSelectorConfig(head_size=64, dtype=torch.float32, kv_cache_dtype="auto", block_size=16)
SLOPED = LAYER._replace(has_alibi_slopes=True)


class Small(SDPABackend):
    """Serves less than the layers of these tests ask for."""

    @staticmethod
    def get_supported_head_sizes():
        return [32]

    @classmethod
    def supports_compute_capability(cls, capability):
        return capability >= (9, 0)

    @classmethod
    def supports_sliding_window(cls):
        return False


class Unsure(SDPABackend):
    @classmethod
    def validate_configuration(cls, **layer):
        raise KeyError("layer")


class Named(SDPABackend):
    @staticmethod
    def get_name():
        return "FLASH_ATTN"


def dispatcher(platform: type = CpuPlatform, **settings: object) -> Dispatcher:
    chosen = config(**settings)
    return Dispatcher(PlatformBinding(resolve([], chosen).bind(None), platform()), chosen)


def choose(layer: AttentionSelectorConfig, made: Dispatcher) -> AttentionChoice:
    made.attention_factory(layer, 8)
    return made.attention_choices[layer, 8]


def by_name(choice: AttentionChoice) -> dict[str, Considered]:
    return {considered.name: considered for considered in choice.considered}


def path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class TestOnTheInTreePlatform:
    def test_the_first_that_can_serve_is_taken_and_the_others_have_their_reason(self):
        choice = choose(SLOPED, dispatcher())

        considered = by_name(choice)
        assert choice.backend is SDPABackend
        assert (choice.reason, choice.origin) == ("platform 'cpu' chose it", "platform:cpu")
        assert list(considered) == ["SDPA", "CPU_ATTN", "REFERENCE"]
        assert [one.state for one in considered.values()] == ["chosen", "passed_over", "passed_over"]
        assert considered["CPU_ATTN"].reasons[0] == "ALiBi slopes are not supported"
        assert considered["REFERENCE"].reasons == ("it could serve; SDPA comes before it",)
        assert considered["SDPA"].registered_by == "vllm_ext itself"

    def test_without_compiled_kernels_their_backend_is_passed_over(self, monkeypatch):
        monkeypatch.setattr(_custom_ops, "why_missing", lambda: "no compiler")

        choice = choose(LAYER, dispatcher())

        assert choice.backend is SDPABackend
        assert by_name(choice)["CPU_ATTN"].reasons == ("there are no compiled kernels: no compiler",)

    @pytest.mark.parametrize("terms", [{"has_sink": True}, {"has_alibi_slopes": True}])
    def test_terms_that_the_kernels_do_not_compute_are_a_reason(self, terms):
        choice = choose(LAYER._replace(**terms), dispatcher())

        assert choice.backend is SDPABackend
        assert "not supported" in by_name(choice)["CPU_ATTN"].reasons[0]

    def test_a_layer_that_nobody_can_serve_is_an_error_with_the_reasons_of_each(self):
        made = dispatcher()
        layer = LAYER._replace(attn_type="encoder")

        with pytest.raises(ConfigError) as caught:
            made.attention_factory(layer, 8)

        assert "no attention backend of platform 'cpu' can serve this model: CPU_ATTN: " in str(caught.value)
        assert "SDPA: attention type 'encoder' is not supported; REFERENCE: attention type" in str(caught.value)
        choice = made.attention_choices[layer, 8]
        assert not choice.is_made
        assert [one.state for one in choice.considered] == ["passed_over"] * 3

    def test_each_kind_of_layer_is_decided_once(self):
        asked = []

        class Asked(CpuPlatform):
            @classmethod
            def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
                asked.append(attn_selector_config)
                return super().get_attn_backend_cls(selected_backend, attn_selector_config, num_heads)

        made = dispatcher(Asked)

        first, again, other = choose(LAYER, made), choose(LAYER, made), choose(SLOPED, made)

        assert again is first
        assert other.selector == SLOPED
        assert asked == [LAYER, SLOPED]


class TestByName:
    @pytest.mark.parametrize("name", ["REFERENCE", "reference", "Reference"])
    def test_the_settings_name_it_in_any_case(self, name):
        choice = choose(LAYER, dispatcher(attention__backend=name))

        assert choice.backend is ReferenceBackend
        assert (choice.reason, choice.origin) == ("attention.backend names it", "command line (--set)")
        assert by_name(choice)["SDPA"].reasons == ("it could serve; REFERENCE comes before it",)

    def test_a_registered_name_is_used(self):
        register_backend("MINE", path(SDPABackend))

        choice = choose(LAYER, dispatcher(attention__backend="mine"))

        assert choice.backend is SDPABackend
        assert choice.considered[0].name == "MINE"
        assert choice.considered[0].registered_by.endswith(f"module {__name__}")

    def test_it_may_be_registered_by_a_path_that_leads_to_a_class_of_another_module(self):
        register_backend("MINE", f"{__name__}:ReferenceBackend")

        choice = choose(LAYER, dispatcher(attention__backend="mine"))

        assert (choice.backend, choice.considered[0].name) == (ReferenceBackend, "MINE")

    def test_a_misspelt_name_is_an_error_with_the_closest_and_the_known_ones(self):
        register_backend("MINE", path(SDPABackend))

        with pytest.raises(ConfigError) as caught:
            dispatcher(attention__backend="MIEN").attention_factory(LAYER, 8)

        assert str(caught.value).startswith(
            "attention.backend (command line (--set)): no attention backend is called 'MIEN' (did you mean 'MINE'?); "
            "registered: CPU_ATTN, MINE, REFERENCE, SDPA. A general plugin adds one with register_backend()"
        )

    def test_one_that_cannot_serve_is_an_error_with_every_reason(self):
        register_backend("SMALL", path(Small))
        layer = LAYER._replace(has_sliding_window=True)

        with pytest.raises(ConfigError) as caught:
            dispatcher(attention__backend="small").attention_factory(layer, 8)

        reasons = "head size 64 is not among [32]; sliding windows are not supported"
        assert str(caught.value).endswith(f"cannot serve this model: {reasons}")

    def test_a_platform_that_takes_another_one_is_an_error(self):
        class Stubborn(CpuPlatform):
            @classmethod
            def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
                return path(SDPABackend)

        assert choose(LAYER, dispatcher(Stubborn, attention__backend="SDPA")).backend is SDPABackend
        with pytest.raises(ConfigError, match=r"'REFERENCE', and platform 'cpu' takes \S+SDPABackend \('SDPA'\) inst"):
            dispatcher(Stubborn, attention__backend="REFERENCE").attention_factory(LAYER, 8)

    def test_a_platform_that_refuses_the_named_one_by_a_value_error_refuses_the_configuration(self):
        class Picky(CpuPlatform):
            @classmethod
            def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
                raise ValueError(f"{selected_backend.name} does not run here")

        with pytest.raises(ConfigError, match="platform 'cpu' .* refuses the configuration: SDPA does not run here$"):
            dispatcher(Picky, attention__backend="SDPA").attention_factory(LAYER, 8)

    def test_a_platform_may_have_a_class_of_its_own_for_a_name_of_vllm(self):
        class Npu(CpuPlatform):
            @classmethod
            def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
                assert selected_backend is AttentionBackendEnum.FLASH_ATTN
                return path(Named)

        assert choose(LAYER, dispatcher(Npu, attention__backend="flash_attn")).backend is Named

    def test_a_hook_of_the_platform_may_name_it_and_is_the_origin(self):
        class Npu(CpuPlatform):
            @classmethod
            def check_and_update_config(cls, vllm_config):
                super().check_and_update_config(vllm_config)
                vllm_config.attention_config.backend = AttentionBackendEnum.REFERENCE

        choice = choose(LAYER, dispatcher(Npu))

        assert (choice.backend, choice.origin) == (ReferenceBackend, "platform:cpu")


class TestOverrides:
    def test_an_overridden_member_is_what_the_platform_chooses(self):
        register_backend(AttentionBackendEnum.SDPA, path(ReferenceBackend))

        choice = choose(SLOPED, dispatcher())

        assert choice.backend is ReferenceBackend
        assert choice.considered[0].name == "SDPA"

    def test_one_that_cannot_be_imported_is_warned_about_once_and_passed_over(self, caplog):
        register_backend(AttentionBackendEnum.CPU_ATTN, "a_module_that_is_missing.Backend")
        made = dispatcher()

        choice = choose(LAYER, made)
        choose(SLOPED, made)

        assert choice.backend is SDPABackend
        failed = by_name(choice)["CPU_ATTN"]
        assert failed.state == "failed"
        assert "No module named 'a_module_that_is_missing'" in failed.reasons[0]
        assert caplog.text.count("attention backend CPU_ATTN cannot be used") == 1

    @pytest.mark.parametrize(
        ("backend", "message"),
        [
            (Unsure, r"validate_configuration\(\) failed: KeyError: 'layer'"),
            (SDPABackend.__mro__[1], "does not implement get_builder_cls, get_impl_cls, get_name"),
            (CpuPlatform, "is not a subclass of vllm_ext.contracts.attention.AttentionBackend"),
        ],
    )
    def test_a_class_that_breaks_the_contract_is_an_error_where_it_is_named(self, backend, message):
        register_backend("BROKEN", path(backend))

        with pytest.raises(ContractError, match=message):
            dispatcher(attention__backend="BROKEN").attention_factory(LAYER, 8)

    def test_what_is_registered_and_not_named_is_recorded_as_such(self):
        register_backend("MINE", path(SDPABackend))

        mine = by_name(choose(LAYER, dispatcher()))["MINE"]

        assert mine.state == "passed_over"
        assert mine.reasons == ("neither attention.backend nor platform 'cpu' names it",)


def test_the_devices_capability_is_asked_for():
    class Old(CpuPlatform):
        @classmethod
        def get_device_capability(cls, device_id=0):
            return DeviceCapability(8, 0)

    made = dispatcher(Old, attention__backend=path(Small))

    with pytest.raises(ConfigError, match=r"compute capability .*major=8, minor=0.* is not supported"):
        made.attention_factory(LAYER._replace(head_size=32), 8)


def test_rows_are_for_people():
    rows = list(choose(SLOPED, dispatcher()).rows())

    assert rows[0] == (
        path(SDPABackend),
        "chosen",
        "platform 'cpu' chose it (SDPA, registered by vllm_ext itself)",
        "platform:cpu",
    )
    assert rows[2] == (
        path(ReferenceBackend),
        "passed_over",
        "it could serve; SDPA comes before it (REFERENCE, registered by vllm_ext itself)",
        "",
    )


PLATFORM = """
from vllm_ext import PlatformEnum
from vllm_ext.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.platforms.cpu import CpuPlatform

def platform():
    return f"{__name__}.Npu"

def register_backends():
    register_backend(AttentionBackendEnum.SDPA, f"{__name__}.OwnSdpa")
    register_backend("NPU_ATTN", f"{__name__}.NpuAttention")

class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT

class OwnSdpa(SDPABackend): ...
class NpuAttention(SDPABackend): ...
"""


class TestSeveralPlatformsInOneProcess:
    @pytest.fixture
    def installed(self, plugins: PluginInstaller) -> None:
        for name in ("acme", "zeta"):
            entry_points = {
                "vllm.platform_plugins": [f"{name} = {name}_npu:platform"],
                "vllm.general_plugins": [f"{name}_attention = {name}_npu:register_backends"],
            }
            plugins.distribution(f"{name}-npu", entry_points, {f"{name}_npu.py": PLATFORM})

    @staticmethod
    def engine(platform: str, backend: str) -> Dispatcher:
        return bootstrap(config(platform__driver=platform, attention__backend=backend)).dispatcher()

    @pytest.mark.parametrize(("backend", "cls"), [("sdpa", "OwnSdpa"), ("npu_attn", "NpuAttention")])
    def test_each_has_what_its_own_plugin_registered(self, installed, backend, cls):
        engines = [self.engine(platform, backend) for platform in ("acme", "zeta")]

        chosen = [path(engine.attention_factory(LAYER, 8)) for engine in engines]

        assert chosen == [f"acme_npu.{cls}", f"zeta_npu.{cls}"]

    def test_the_in_tree_platform_has_neither(self, installed):
        self.engine("acme", "auto")
        in_tree = self.engine("cpu", "sdpa")

        choice = choose(LAYER, in_tree)

        assert choice.backend is SDPABackend
        assert by_name(choice)["NPU_ATTN"].reasons == ("it is registered for another platform",)
        assert choose(LAYER, self.engine("cpu", "auto")).backend is BACKEND_OF_CPU
        with pytest.raises(ConfigError, match="no attention backend is called 'NPU_ATTN'"):
            self.engine("cpu", "NPU_ATTN").attention_factory(LAYER, 8)

    def test_a_general_plugin_without_a_platform_serves_all_of_them(self, installed, plugins):
        code = (
            "from vllm_ext.attention.backends.registry import register_backend\n"
            "from vllm_ext.attention.backends.sdpa import SDPABackend\n"
            "def register(): register_backend('FAST', 'fast.Fast')\n"
            "class Fast(SDPABackend): ...\n"
        )
        plugins.distribution("fast", {"vllm.general_plugins": ["fast = fast:register"]}, {"fast.py": code})

        chosen = [path(self.engine(platform, "fast").attention_factory(LAYER, 8)) for platform in ("acme", "cpu")]

        assert chosen == ["fast.Fast", "fast.Fast"]
