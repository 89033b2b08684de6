"""Custom ops: which forward runs, and what an out-of-tree class replaces."""

import copy
import functools
import importlib
import subprocess
import sys

import pytest
import torch

from vllm_ext import CustomOp, Platform, PlatformEnum, PluggableLayer
from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.contracts.custom_op import is_enabled, maybe_get_oot_by_class
from vllm_ext.contracts.vllm_config import CompilationConfig, DeviceConfig, VllmConfig, set_current_vllm_config
from vllm_ext.errors import ConfigError, ContractError, RegistrationError
from vllm_ext.layers.activation import SiluAndMul
from vllm_ext.registry.owners import loading
from vllm_ext.registry.scope import Scope, use_scope


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
    scope = Scope.of(distribution, foreign)
    config = VllmConfig(model_config=None, device_config=DeviceConfig("cpu"))
    with use_platform(OutOfTree()), set_current_vllm_config(config), use_scope(scope):
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


LATE = """
def register(op_cls):
    class Late(op_cls):
        def forward_oot(self, x):
            return 7 * x

    op_cls.register_oot(Late)
"""


def test_one_that_is_registered_once_its_plugin_was_loaded_is_of_its_distribution(double, plugins):
    plugins.distribution("Acme_Late", {}, {"acme_ops.py": LATE})
    (folder,) = plugins.site.glob("*.dist-info")
    (folder / "RECORD").write_text("acme_ops.py,sha256=x,1\n")

    importlib.import_module("acme_ops").register(double)

    assert build_for(double, "acme.late")(ONE).item() == 7
    assert type(build_for(double, "mine", ["Acme_Late"])) is double


def test_what_is_no_class_is_refused(double):
    with pytest.raises(RegistrationError, match="5 cannot replace custom op 'Double'"):
        double.register_oot(name="Double")(5)


def test_vllms_keyword_for_the_class_is_taken(double):
    class Other(double):
        def forward_oot(self, x):
            return 5 * x

    CustomOp.register_oot(_decorated_op_cls=Other, name="Double")

    assert build(double)(ONE).item() == 5


def test_registering_a_replacement_again_changes_nothing(double, caplog):
    replacement = replace(double, 3)
    double.register_oot(replacement)
    double.register_oot(replacement)

    assert type(build(double)) is replacement
    assert caplog.text == ""


def test_an_op_may_not_take_the_name_of_another(double):
    class Other(CustomOp):
        pass

    with pytest.raises(RegistrationError, match="Other cannot be custom op 'double', which is .*Double"):
        CustomOp.register("double")(Other)
    assert type(build(double)) is double


def test_nor_that_of_an_in_tree_op():
    class Norm(CustomOp):
        pass

    with pytest.raises(RegistrationError, match="custom op 'rms_norm', which is vllm_ext.layers.layernorm:RMSNorm"):
        CustomOp.register("rms_norm")(Norm)


def test_what_is_neither_op_nor_layer_is_not_registered():
    with pytest.raises(RegistrationError, match="cannot be custom op 'x': it is no CustomOp or PluggableLayer"):
        CustomOp.register("x")(torch.nn.Linear)


def test_an_in_tree_op_is_a_target_before_its_module_is_imported():
    """In a process of its own, which has imported no layer."""
    program = """
from vllm_ext import CustomOp
from vllm_ext.registry.custom_ops import CUSTOM_OPS
import sys
assert "vllm_ext.layers.layernorm" not in sys.modules
try:
    CustomOp.register_oot(name="RMSNorm")(CustomOp)
except TypeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "it is not a subclass of vllm_ext.layers.layernorm.RMSNorm" in done.stdout


def test_the_name_of_the_op_leads_to_the_name_of_its_class():
    with pytest.raises(RegistrationError, match=r"no custom op of class 'rms_norm' .* \(did you mean 'RMSNorm'\?\)"):
        CustomOp.register_oot(name="rms_norm")(CustomOp)


def test_a_class_that_nobody_registered_is_no_target(double):
    class Special(double):
        pass

    class Other(Special):
        pass

    with pytest.raises(RegistrationError, match="no custom op of class 'Special' is registered to be replaced"):
        Special.register_oot(Other)


def test_a_subclass_that_is_an_op_of_its_own_has_replacements_of_its_own(double):
    @CustomOp.register("special")
    class Special(double):
        def forward_native(self, x):
            return 7 * x

    replace(double, 3)
    replace(Special, 11)

    assert build(double)(ONE).item() == 3
    assert build(Special)(ONE).item() == 11
    assert build(Special, custom_ops=["-special"])(ONE).item() == 7


def test_an_op_is_no_replacement_of_another(double):
    @CustomOp.register("special")
    class Special(double):
        pass

    with pytest.raises(RegistrationError, match="Special cannot replace custom op 'Double': it is the op 'special'"):
        double.register_oot(Special)


def test_two_ops_with_classes_of_one_name_are_told_apart_by_the_class(double):
    @CustomOp.register("other_double")
    class Double(CustomOp):
        def forward_native(self, x):
            return 4 * x

    with pytest.raises(RegistrationError, match="2 custom ops have a class 'Double': double, other_double"):
        CustomOp.register_oot(name="Double")(double)
    replace(Double, 9)
    assert build(Double)(ONE).item() == 9
    assert build(double)(ONE).item() == 2


def test_an_op_that_is_turned_on_and_off_is_an_error(double):
    with pytest.raises(ConfigError, match=r"both \+double and -double"):
        build(double, custom_ops=["+double", "-double"])


def test_all_and_none_together_are_an_error(double):
    with pytest.raises(ConfigError, match="both all and none"):
        build(double, custom_ops=["all", "none"])


@pytest.mark.parametrize("custom_ops, default_on, enabled", [([], True, True), (["none", "+double"], False, True)])
def test_vllms_questions_are_answered(double, custom_ops, default_on, enabled):
    config = VllmConfig(model_config=None, compilation_config=CompilationConfig(custom_ops=custom_ops))
    with set_current_vllm_config(config):
        assert (double.default_on(), double.enabled()) == (default_on, enabled)


def test_an_op_that_is_turned_off_can_insist(double):
    @CustomOp.register("insists")
    class Insists(CustomOp):
        def __init__(self):
            super().__init__(enforce_enable=True)

        def forward_oot(self, x):
            return 6 * x

    assert build(Insists, custom_ops=["none"])(ONE).item() == 6


def test_on_rocm_the_form_for_cuda_serves(double):
    class Rocm(InTree):
        _enum = PlatformEnum.ROCM

    @CustomOp.register("on_cuda")
    class OnCuda(CustomOp):
        def forward_cuda(self, x):
            return 8 * x

    assert build(OnCuda, Rocm)(ONE).item() == 8


FORMS = {
    PlatformEnum.CPU: "forward_cpu",
    PlatformEnum.CUDA: "forward_cuda",
    PlatformEnum.ROCM: "forward_hip",
    PlatformEnum.TPU: "forward_tpu",
    PlatformEnum.XPU: "forward_xpu",
    PlatformEnum.OOT: "forward_oot",
}


@pytest.mark.parametrize("kind", FORMS)
def test_each_kind_of_platform_has_a_form_of_its_own(kind):
    names = (*FORMS.values(), "forward_native")
    every_form = type("EveryForm", (CustomOp,), {name: lambda self, name=name: name for name in names})

    assert build(every_form, type("Kind", (InTree,), {"_enum": kind}))() == FORMS[kind]


def test_the_form_is_chosen_once():
    @CustomOp.register("chosen")
    class Chosen(CustomOp):
        asked = 0

        def dispatch_forward(self):
            Chosen.asked += 1
            return super().dispatch_forward()

        def forward_native(self, x):
            return x

    op = build(Chosen)
    op(ONE), op(ONE)

    assert Chosen.asked == 1


@pytest.mark.parametrize("compile_native", [False, True])
def test_an_op_may_have_vllms_parameters_which_are_about_compiling(compile_native):
    @CustomOp.register("compiles", dynamic_arg_dims={"x": 0})
    class Compiles(CustomOp):
        def __init__(self):
            super().__init__(compile_native=compile_native)

        def dispatch_forward(self, compile_native):
            self.told = compile_native
            return super().dispatch_forward(compile_native)

        def forward_oot(self, x):
            return 7 * x

    op = build(Compiles)

    assert (Compiles.name, op.told, op(ONE).item()) == ("compiles", compile_native, 7)


def test_an_op_whose_dispatch_was_decorated_to_be_asked_without_parameters_is_asked_so():
    def plainly(dispatch_forward):
        @functools.wraps(dispatch_forward)
        def decorated(self):
            return dispatch_forward(self)

        return decorated

    @CustomOp.register("decorated")
    class Decorated(CustomOp):
        dispatch_forward = plainly(CustomOp.dispatch_forward)

        def forward_oot(self, x):
            return 7 * x

    assert build(Decorated)(ONE).item() == 7


@pytest.fixture
def table():
    @PluggableLayer.register("table")
    class Table(PluggableLayer):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self):
            return self.value

    return Table


def replace_layer(layer_cls):
    class Replacement(layer_cls):
        def forward(self):
            return -self.value

    CustomOp.register_oot(_decorated_op_cls=Replacement, name=layer_cls.__name__)
    return Replacement


def test_a_whole_layer_is_replaced_through_the_same_registry(table):
    replacement = replace_layer(table)

    layer = build(lambda: table(4))

    assert type(layer) is replacement
    assert layer() == -4


def test_a_whole_layer_outside_of_an_engine_is_what_it_says(table):
    replace_layer(table)

    assert type(table(4)) is table


def test_what_is_built_in_place_of_a_class_can_be_asked(double):
    replacement = replace(double, 3)

    assert build(lambda: maybe_get_oot_by_class(double)) is replacement
    assert build(lambda: maybe_get_oot_by_class(double), InTree) is double


def test_a_copy_of_an_op_computes_by_itself():
    @CustomOp.register("scaled")
    class Scaled(CustomOp):
        factor = 2

        def forward_native(self, x):
            return self.factor * x

    op = build(Scaled)
    other = copy.deepcopy(op)
    other.factor = 5

    assert (op(ONE).item(), other(ONE).item()) == (2, 5)


def test_a_replacement_may_have_a_forward_of_its_own(double):
    @double.register_oot
    class Replacement(double):
        def forward(self, x):
            return 13 * x

    assert build(double)(ONE).item() == 13


def test_a_form_that_cannot_run_here_is_not_chosen():
    @CustomOp.register("picky")
    class Picky(CustomOp):
        @classmethod
        def can_run(cls, method):
            assert method == "forward_oot"
            return False

        def forward_native(self, x):
            return x

        def forward_oot(self, x):
            return 2 * x

    assert build(Picky)(ONE).item() == 1


class Gate(SiluAndMul):
    """A replacement that forgets to return what it computes."""

    forgets = True

    def forward_oot(self, x):
        result = self.forward_native(x)
        return None if self.forgets else result


def test_a_replacement_of_an_in_tree_op_that_returns_nothing_is_named_in_its_first_call():
    SiluAndMul.register_oot(Gate)
    op = build(SiluAndMul)

    with pytest.raises(
        ContractError,
        match=rf"forward_oot\(\) of {__name__}.Gate, which stands in for custom op 'SiluAndMul', returned None; it "
        r"has to return what SiluAndMul.forward_native\(\) does",
    ):
        op(ONE.repeat(2))


def test_what_a_replacement_returns_is_looked_at_once():
    SiluAndMul.register_oot(Gate)
    op = build(SiluAndMul)
    op.forgets = False
    copied = copy.deepcopy(op)

    op(ONE.repeat(2))

    assert op.forward == op._forward_method == op.forward_oot
    assert copied(ONE.repeat(2)) is not None
    assert copied.forward == copied.forward_oot


def test_an_op_of_a_plugins_own_may_work_in_place_and_return_nothing():
    @CustomOp.register("fill")
    class Fill(CustomOp):
        def forward_native(self, x):
            x.fill_(3)

    @Fill.register_oot
    class Other(Fill):
        def forward_oot(self, x):
            x.fill_(4)

    x = torch.zeros(1)

    assert build(Fill)(x) is None
    assert x.item() == 4
