"""The compatibility table: what it names exists, is called where it says, and is tested."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vllm_ext

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "vllm_ext" / "COMPATIBILITY.md"


class Row(NamedTuple):
    function: str
    caller: str
    test: str


def rows_of(heading: str) -> Iterator[list[str]]:
    """The cells of the tables below a heading, without the backquotes around them."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


FUNCTIONS = [Row(*cells) for cells in rows_of("Documented functions")]
DEPRECATED = list(rows_of("Deprecated"))


@cache
def sources(path: str) -> dict[str, str]:
    """The functions, methods and tables of a module, as text by qualified name."""
    text = (ROOT / path).read_text()
    found: dict[str, str] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                found[prefix + name] = ast.get_source_segment(text, node) or ""
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(text).body, "")
    return found


def resolve(name: str) -> Any:
    """A dotted name of the package, or of a module that it spells out."""
    if name.startswith("vllm_ext."):
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)
    first, *rest = name.split(".")
    value = getattr(vllm_ext, first)
    for attribute in rest:
        # What a subclass has to set is only annotated.
        value = getattr(value, attribute, None) or value.__annotations__[attribute]
    return value


def test_the_table_has_the_functions_that_vllms_documentation_names():
    documented = {
        "ModelRegistry.register_model",
        "load_plugins_by_group",
        "Platform.device_type",
        "Platform.check_and_update_config",
        "Platform.get_attn_backend_cls",
        "Platform.get_device_communicator_cls",
        "WorkerBase.init_device",
        "WorkerBase.initialize_cache",
        "WorkerBase.load_model",
        "WorkerBase.get_kv_cache_spec",
        "WorkerBase.determine_available_memory",
        "WorkerBase.initialize_from_config",
        "WorkerBase.execute_model",
        "WorkerBase.compile_or_warm_up_model",
    }

    assert documented <= {row.function for row in FUNCTIONS}


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.function)
def test_what_a_row_names_exists(row):
    assert resolve(row.function) is not None


@pytest.mark.parametrize("row", [row for row in FUNCTIONS if "::" in row.caller], ids=lambda row: row.function)
def test_it_is_called_where_the_row_says(row):
    path, _, caller = row.caller.partition("::")

    assert caller in sources(path)
    assert re.search(rf"\b{row.function.rpartition('.')[2]}\b", sources(path)[caller])


@pytest.mark.parametrize("row", [row for row in FUNCTIONS if "::" not in row.caller], ids=lambda row: row.function)
def test_otherwise_the_row_says_who_does(row):
    assert re.fullmatch(r"(plugins|models|people) (call|read|raise) it", row.caller)


@pytest.mark.parametrize("test", sorted({row.test for row in FUNCTIONS} | {row[-1] for row in DEPRECATED}))
def test_its_test_exists(test):
    path, _, name = test.partition("::")

    assert name.rpartition("::")[2].startswith("test_")
    assert name.replace("::", ".") in sources(path)


def test_no_function_has_two_rows():
    names = [row.function for row in FUNCTIONS]

    assert sorted(set(names)) == sorted(names)


def test_the_readme_leads_there():
    assert "(vllm_ext/COMPATIBILITY.md)" in (ROOT / "README.md").read_text()
