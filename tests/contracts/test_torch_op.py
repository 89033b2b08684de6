"""Functions as ops of torch: what is registered, again and by whom; and the compiled kernels among them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.library import Library, opcheck

from vllm_ext import Platform, PlatformEnum, direct_register_custom_op
from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.errors import RegistrationError
from vllm_ext.registry.owners import loading

_numbers = itertools.count()
ONES = torch.ones(2)


@pytest.fixture
def name():
    """Ops of torch last as long as the process: each test has one of its own."""
    return f"test_op_{next(_numbers)}"


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def triple(x: torch.Tensor) -> torch.Tensor:
    return 3 * x


def power(x: torch.Tensor, exponent: int) -> torch.Tensor:
    return x**exponent


def clear(x: torch.Tensor) -> None:
    x.zero_()


def op(name, namespace="vllm_ext"):
    return getattr(getattr(torch.ops, namespace), name)


def test_a_function_becomes_an_op(name):
    direct_register_custom_op(name, double, dispatch_key="CPU")

    assert op(name)(ONES).tolist() == [2, 2]


def test_its_schema_says_what_it_changes(name):
    direct_register_custom_op(name, clear, ["x"], dispatch_key="CPU")
    x = torch.ones(2)

    op(name)(x)

    assert x.tolist() == [0, 0]
    assert op(name).default._schema.arguments[0].alias_info.is_write


def test_it_passes_torchs_own_check_and_compiles(name):
    direct_register_custom_op(name, double, fake_impl=torch.empty_like, dispatch_key="CPU")

    opcheck(op(name), (ONES,))
    compiled = torch.compile(lambda x: op(name)(x) + 1, backend="eager", fullgraph=True)
    assert compiled(ONES).tolist() == [3, 3]


def test_without_a_key_it_is_that_of_the_current_platform(name):
    class Npu(Platform):
        _enum = PlatformEnum.OOT
        device_name = device_type = "cpu"
        dispatch_key = "Meta"

    with use_platform(Npu()):
        direct_register_custom_op(name, double)

    assert op(name)(ONES.to("meta")).shape == (2,)
    with pytest.raises(NotImplementedError, match="CPU"):
        op(name)(ONES)


def test_registering_again_is_silent_and_the_newest_function_counts(name):
    direct_register_custom_op(name, double, fake_impl=torch.empty_like, dispatch_key="CPU")
    direct_register_custom_op(name, triple, fake_impl=torch.empty_like, dispatch_key="CPU")

    assert op(name)(ONES).tolist() == [3, 3]


def test_a_second_device_gets_a_function_of_its_own(name):
    direct_register_custom_op(name, double, dispatch_key="CPU")
    with loading("npu", "npu-plugin"):
        direct_register_custom_op(name, triple, dispatch_key="Meta")

    assert op(name)(ONES).tolist() == [2, 2]
    assert op(name)(ONES.to("meta")).is_meta


def test_another_schema_is_refused_with_both(name):
    direct_register_custom_op(name, double, dispatch_key="CPU")

    with pytest.raises(RegistrationError, match=rf"vllm_ext::{name} .* cannot become \(Tensor x, SymInt exponent\)"):
        direct_register_custom_op(name, power, dispatch_key="CPU")


def test_somebody_elses_function_is_not_replaced(name):
    with loading("a", "first"):
        direct_register_custom_op(name, double, dispatch_key="CPU")

    with (
        loading("b", "second"),
        pytest.raises(RegistrationError, match="by plugin 'a' of first, and cannot be registered by plugin 'b' of sec"),
    ):
        direct_register_custom_op(name, triple, dispatch_key="CPU")
    assert op(name)(ONES).tolist() == [2, 2]


def test_a_function_without_annotations_is_refused(name):
    with pytest.raises(RegistrationError, match=f"torch op vllm_ext::{name}: .*x"):
        direct_register_custom_op(name, lambda x: x, dispatch_key="CPU")


def test_a_key_that_torch_does_not_know_is_refused_and_can_be_put_right(name):
    with pytest.raises(RegistrationError, match=f"torch op vllm_ext::{name}: .*NPU9000"):
        direct_register_custom_op(name, double, dispatch_key="NPU9000")

    direct_register_custom_op(name, double, dispatch_key="CPU")
    assert op(name)(ONES).tolist() == [2, 2]


def test_a_library_of_ones_own_has_a_namespace_of_its_own(name):
    library = Library("vllm_ext_test", "FRAGMENT")

    direct_register_custom_op(name, double, target_lib=library, dispatch_key="CPU")

    assert op(name, "vllm_ext_test")(ONES).tolist() == [2, 2]
    assert not hasattr(torch.ops.vllm_ext, name)


def test_tags_are_the_ops(name):
    direct_register_custom_op(name, double, dispatch_key="CPU", tags=(torch.Tag.needs_fixed_stride_order,))

    assert torch.Tag.needs_fixed_stride_order in op(name).default.tags
