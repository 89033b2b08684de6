"""The table of in-tree ops is what their modules register."""

from __future__ import annotations

import importlib

import pytest

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
