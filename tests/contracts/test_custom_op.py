"""Custom ops: which forward runs, and what an out-of-tree class replaces."""

import pytest
import torch

from vllm_ext import CustomOp, Platform, PlatformEnum
from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.contracts.custom_op import is_enabled
from vllm_ext.contracts.vllm_config import CompilationConfig, DeviceConfig, VllmConfig, set_current_vllm_config
from vllm_ext.errors import RegistrationError
from vllm_ext.registry.owners import loading


class InTree(Platform):
    _enum = PlatformEnum.CPU
    device_name = device_type = "cpu"


class OutOfTree(InTree):
    _enum = PlatformEnum.OOT


@pytest.fixture
def double():
    @CustomOp.register("double")
    class Double(CustomOp):
        def forward_native(self, x):
            return 2 * x

    return Double


def build(op_cls, platform=OutOfTree, custom_ops=()):
    config = VllmConfig(model_config=None, compilation_config=CompilationConfig(custom_ops=list(custom_ops)))
    with use_platform(platform()), set_current_vllm_config(config):
        return op_cls()


def replace(op_cls, factor):
    @op_cls.register_oot
    class Replacement(op_cls):
        def forward_oot(self, x):
            return factor * x

    return Replacement


ONE = torch.ones(1)


def test_without_a_replacement_the_native_form_runs(double):
    assert build(double)(ONE).item() == 2


def test_an_out_of_tree_class_takes_the_place_of_the_op(double):
    replacement = replace(double, 3)

    op = build(double)

    assert type(op) is replacement
    assert op(ONE).item() == 3


def test_an_engine_on_an_in_tree_platform_keeps_the_in_tree_op(double):
    replace(double, 3)

    assert type(build(double, InTree)) is double


def test_the_replacement_keeps_the_ops_name_so_the_settings_still_reach_it(double):
    replace(double, 3)

    assert build(double, custom_ops=["-double"])(ONE).item() == 2


def test_registering_by_class_name_is_the_same(double):
    @CustomOp.register_oot(name="Double")
    class Other(double):
        def forward_oot(self, x):
            return 5 * x

    assert build(double)(ONE).item() == 5


def test_a_subclass_of_a_replaced_op_is_not_replaced(double):
    class Special(double):
        def forward_native(self, x):
            return 7 * x

    replace(double, 3)

    assert build(Special)(ONE).item() == 7


def test_an_unknown_target_is_refused_with_the_closest_name(double):
    with pytest.raises(RegistrationError, match=r"'Duble' is registered to be replaced \(did you mean 'Double'\?\)"):
        CustomOp.register_oot(name="Duble")(double)


def test_a_class_that_is_no_subclass_of_its_target_is_refused(double):
    with pytest.raises(RegistrationError, match="is not a subclass of .*Double"):
        double.register_oot(type("Stranger", (CustomOp,), {}))


@pytest.mark.parametrize(
    "custom_ops, enabled",
    [
        ([], True),
        (["all"], True),
        (["none"], False),
        (["none", "+x"], True),
        (["-x"], False),
        (["all", "-x"], False),
    ],
)
def test_the_custom_ops_setting(custom_ops, enabled):
    assert is_enabled("x", custom_ops) is enabled


def replace_as(op_cls, distribution, factor):
    with loading("plugin", distribution):
        return replace(op_cls, factor)


def build_for(op_cls, distribution, foreign=()):
    config = VllmConfig(model_config=None, device_config=DeviceConfig("cpu", distribution, frozenset(foreign)))
    with use_platform(OutOfTree()), set_current_vllm_config(config):
        return op_cls()


def test_each_of_two_platforms_gets_the_replacement_of_its_own_distribution(double, caplog):
    replace_as(double, "one", 3)
    replace_as(double, "two", 5)

    assert build_for(double, "one", ["two"])(ONE).item() == 3
    assert build_for(double, "two", ["one"])(ONE).item() == 5
    assert "custom op 'Double' is replaced by two and by one" in caplog.text


def test_another_platforms_replacement_is_not_taken(double):
    replace_as(double, "other-platform", 3)

    assert type(build_for(double, "mine", ["other-platform"])) is double


def test_a_replacement_of_a_distribution_without_a_platform_is_taken(double):
    replace_as(double, "ops-only", 3)

    assert build_for(double, "mine", ["other-platform"])(ONE).item() == 3


def test_what_is_no_class_is_refused(double):
    with pytest.raises(RegistrationError, match="5 cannot replace custom op 'Double'"):
        double.register_oot(name="Double")(5)
