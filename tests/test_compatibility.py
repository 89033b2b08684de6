"""The compatibility page: what it names exists, is called where it says, and is tested; and nothing is missing."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
from packaging.version import Version
from support.compatibility import ROOT, class_of, public_methods, rows_of, split

from vllm_ext import __version__
from vllm_ext.contracts.platform_check import CALLS


class Row(NamedTuple):
    function: str
    caller: str
    test: str


class Deprecation(NamedTuple):
    old: str
    use: str
    removed_in: str
    warner: str
    test: str


FUNCTIONS = [Row(*cells) for cells in rows_of("Documented functions")]
DEPRECATED = [Deprecation(*cells) for cells in rows_of("Deprecated")]
NOT_CALLED = [name for name, _ in rows_of("Not called yet")]

DOCUMENTED = {
    "ModelRegistry.get_supported_archs",
    "ModelRegistry.register_model",
    "load_plugins_by_group",
    "Platform._enum",
    "Platform.device_type",
    "Platform.device_name",
    "Platform.check_and_update_config",
    "Platform.get_attn_backend_cls",
    "Platform.get_device_communicator_cls",
    "WorkerBase.init_device",
    "WorkerBase.initialize_cache",
    "WorkerBase.load_model",
    "WorkerBase.get_kv_cache_spaces",
    "WorkerBase.determine_available_memory",
    "WorkerBase.initialize_from_config",
    "WorkerBase.execute_model",
    "WorkerBase.sleep",
    "WorkerBase.wake_up",
    "WorkerBase.compile_or_warm_up_model",
    "WorkerBase.take_draft_token_ids",
    "WorkerBase.add_lora",
    "WorkerBase.remove_lora",
    "WorkerBase.list_loras",
    "WorkerBase.pin_lora",
    "WorkerBase.execute_dummy_batch",
    "CustomOp.register_oot",
    "vllm_ext.attention._Backend",
    "vllm_ext.attention.backends.registry.register_backend",
}
"""What vLLM's documentation of plugins names; its ``wakeup`` is called ``wake_up`` in vLLM."""

CONTRACTS = (
    "Platform",
    "WorkerBase",
    "AttentionBackend",
    "AttentionImpl",
    "AttentionMetadataBuilder",
    "vllm_ext.attention.backends.registry.AttentionBackendEnum",
    "DeviceCommunicatorBase",
    "CustomOp",
    "PluggableLayer",
    "ModelRegistry",
    "vllm_ext.contracts.model.SupportsTextGeneration",
    "BaseModelLoader",
    "QuantizationConfig",
    "LinearMethod",
    "TokenizerRegistry",
    "TokenizerLike",
    "LoRAResolverRegistry",
    "LoRAResolver",
    "LogitsProcessor",
    "AdapterLogitsProcessor",
    "StatLoggerBase",
    "AggregateStatLoggerBase",
    "SchedulerInterface",
    "IOProcessor",
    "EndpointPlugin",
    "vllm_ext.contracts.executor.Executor",
    "LLM",
    "AsyncLLM",
)
"""Classes, and objects of them, all of whose public methods and properties have a row."""


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


@cache
def definitions(path: str) -> dict[str, ast.stmt]:
    """The functions, methods, classes and tables of a module by qualified name."""
    found: dict[str, ast.stmt] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            found.update({prefix + name: node for name in names})
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(tree(path).body, "")
    return found


def uses(node: ast.stmt) -> Iterator[str]:
    """Names that code speaks of, and whole strings, by which methods are called too; no comment, no docstring."""
    for part in ast.walk(node):
        match part:
            case ast.Attribute(attr=name) | ast.Name(id=name):
                yield name
            case ast.Constant(value=str(name)):
                yield name


def is_there(name: str) -> bool:
    """Whether it is defined, or annotated as what a subclass has to set."""
    owner, attribute = split(name)
    bases = owner.__mro__ if isinstance(owner, type) else ()
    return hasattr(owner, attribute) or any(attribute in vars(base).get("__annotations__", ()) for base in bases)


def warners() -> set[str]:
    """The functions of the package that raise a DeprecationWarning."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "vllm_ext").rglob("*.py"))]
    return {
        f"{path}::{name}"
        for path in paths
        if "DeprecationWarning" in (ROOT / path).read_text()
        for name, node in definitions(path).items()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "DeprecationWarning" in uses(node)
    }


def test_the_page_has_what_vllms_documentation_names():
    rows = {row.function for row in FUNCTIONS} | {row.old for row in DEPRECATED} | set(NOT_CALLED)

    assert DOCUMENTED - rows == set()


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_method_of_a_contract_has_a_row(contract):
    rows = {row.function for row in FUNCTIONS} | {row.old for row in DEPRECATED} | set(NOT_CALLED)

    assert {f"{contract}.{name}" for name in public_methods(class_of(contract))} - rows == set()


def test_every_call_of_a_platform_has_a_row():
    assert {f"Platform.{name}" for name in (*CALLS, "get_attn_backend_cls")} - {
        row.function for row in FUNCTIONS
    } == set()


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.function)
def test_what_a_row_names_exists(row):
    assert is_there(row.function)


@pytest.mark.parametrize("row", [row for row in FUNCTIONS if "::" in row.caller], ids=lambda row: row.function)
def test_it_is_called_where_the_row_says(row):
    path, _, caller = row.caller.partition("::")

    assert caller in definitions(path)
    assert row.function.rpartition(".")[2] in set(uses(definitions(path)[caller]))


@pytest.mark.parametrize("row", [row for row in FUNCTIONS if "::" not in row.caller], ids=lambda row: row.function)
def test_otherwise_the_row_says_who_does(row):
    assert re.fullmatch(r"(plugins|models|programs) (call|read|raise) it", row.caller)


@pytest.mark.parametrize("test", sorted({row.test for row in FUNCTIONS} | {row.test for row in DEPRECATED}))
def test_its_test_exists(test):
    path, _, name = test.partition("::")

    assert name.rpartition("::")[2].startswith("test_")
    assert name.replace("::", ".") in definitions(path)


@cache
def cases(test: str) -> tuple[str, ...]:
    """What a test is run with."""
    path, _, name = test.partition("::")
    spec = importlib.util.spec_from_file_location(f"rows_of_{re.sub(r'[^a-z]', '_', path)}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    marks = getattr(getattr(module, name), "pytestmark", [])
    return tuple(str(case) for mark in marks if mark.name == "parametrize" for case in mark.args[1])


LEFT_OUT = [row for row in FUNCTIONS if re.search(r"::test_(a|an)_\w+_left_out_|::test_without_an_override_", row.test)]


@pytest.mark.parametrize("row", LEFT_OUT, ids=lambda row: row.function)
def test_where_overrides_are_left_out_one_by_one_it_is_among_them(row):
    # The executor's methods are the plural of the worker's.
    name = row.function.rpartition(".")[2].removesuffix("s")

    assert not cases(row.test) or any(re.search(rf"\b{name}s?\b", case) for case in cases(row.test))


def test_no_function_has_two_rows():
    names = [row.function for row in FUNCTIONS] + [row.old for row in DEPRECATED] + NOT_CALLED

    assert sorted(set(names)) == sorted(names)


def test_every_deprecation_warning_has_a_row():
    assert warners() == {row.warner for row in DEPRECATED}


@pytest.mark.parametrize("row", DEPRECATED, ids=lambda row: row.old)
def test_the_warning_names_replacement_and_version(row):
    path, _, name = row.warner.partition("::")
    text = " ".join(uses(definitions(path)[name]))

    assert f"vllm_ext {row.removed_in} " in text
    assert row.use in text
    assert re.findall(r"\w+", row.old)[-1] in text


@pytest.mark.parametrize("row", DEPRECATED, ids=lambda row: row.old)
def test_no_old_form_is_there_beyond_its_last_version(row):
    assert Version(__version__) < Version(row.removed_in)


def test_what_is_not_called_yet_is_named_nowhere_in_the_engine():
    """Whoever calls it moves its row."""
    folders = ("attention", "dispatch", "distributed", "engine", "layers", "models", "platforms", "server", "worker")
    paths = [path for folder in folders for path in (ROOT / "vllm_ext" / folder).rglob("*.py")]
    paths.append(ROOT / "vllm_ext" / "contracts" / "executor.py")
    used = {name for path in paths for node in tree(path.relative_to(ROOT).as_posix()).body for name in uses(node)}

    assert len(used) > 1000, "the engine was read"
    assert {name.rpartition(".")[2] for name in NOT_CALLED} & used == set()


def test_the_readme_leads_there():
    assert "(vllm_ext/COMPATIBILITY.md)" in (ROOT / "README.md").read_text()
