"""The table of in-tree ops is what their modules register."""

from __future__ import annotations

import importlib
import re

import pytest

from vllm_ext.layers.activation import SiluAndMul
from vllm_ext.layers.linear import RowParallelLinear
from vllm_ext.registry.custom_ops import CUSTOM_OPS, IN_TREE


@pytest.mark.parametrize("name, path", IN_TREE.items())
def test_each_row_is_the_class_that_registers_under_the_name(name, path):
    module, _, cls_name = path.partition(":")

    op_cls = CUSTOM_OPS.get(name)

    assert op_cls is getattr(importlib.import_module(module), cls_name)
    assert op_cls.name == name
    assert CUSTOM_OPS.name_of(op_cls) == name


def test_no_in_tree_op_is_missing_from_the_table():
    for path in IN_TREE.values():
        importlib.import_module(path.partition(":")[0])
    in_tree = [name for name, entry in CUSTOM_OPS.ops.snapshot().items() if entry.owner is None]

    assert set(in_tree) == set(IN_TREE)


def double(self, x):
    return 2 * x


@pytest.mark.parametrize(
    ("op_cls", "body", "said"),
    [
        (SiluAndMul, {"foward_oot": double}, r"it defines foward_oot \(did you mean 'forward_oot'\?\)$"),
        (SiluAndMul, {"forward_cuda": double}, "it defines forward_cuda"),
        (SiluAndMul, {"__doc__": "Mine."}, "it defines nothing"),
        (RowParallelLinear, {"foward": double}, r"none of forward, __init__; it defines foward \(did you mean "),
    ],
)
def test_a_replacement_that_replaces_nothing_is_warned_about_once(caplog, op_cls, body, said):
    replacement = type("Mine", (op_cls,), {"__module__": "acme", **body})

    for _ in range(2):
        op_cls.register_oot(replacement)

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    named = (
        f"acme.Mine takes the place of custom op {op_cls.__name__!r}, and changes nothing of it: it overrides none of"
    )
    assert record.getMessage().startswith(named)
    assert re.search(said, record.getMessage())


@pytest.mark.parametrize(
    "name", ["forward", "forward_native", "forward_oot", "dispatch_forward", "__init__", "enabled"]
)
def test_a_replacement_of_any_part_is_not_warned_about(caplog, name):
    SiluAndMul.register_oot(type("Mine", (SiluAndMul,), {name: double}))

    assert caplog.records == []


def test_what_a_class_between_op_and_replacement_overrides_counts(caplog):
    between = type("Between", (SiluAndMul,), {"forward_oot": double})

    SiluAndMul.register_oot(type("Mine", (between,), {}))

    assert caplog.records == []
