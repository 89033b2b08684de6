"""The compatibility guarantee: what plugins import, and how they call it, does not change by accident."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from pathlib import Path

import pytest
from support.tools import load_tool

tool = load_tool("public_api")
RECORDED = Path(__file__).parent / "public_api.txt"
REGENERATE = "python tools/public_api.py > tests/contracts/public_api.txt"
ADVICE = f"""
What is there may be added to. What is removed or changed has to be announced first: the old form goes on working for
one minor version, with a DeprecationWarning that names the replacement and the version of vllm_ext that removes the old
form, and a row under "Deprecated" in vllm_ext/COMPATIBILITY.md. Then record the list anew:
    {REGENERATE}
"""


def differences(recorded: list[str], live: list[str]) -> str:
    """What changed, and what to do about it; empty where nothing did."""
    gone, new = sorted(set(recorded) - set(live)), sorted(set(live) - set(recorded))
    if not gone and not new:
        return ""
    lines = [f"- {line}" for line in gone] + [f"+ {line}" for line in new]
    return "\n".join(["the public interface is not the recorded one:", *lines]) + "\n" + ADVICE


def test_the_public_interface_is_the_recorded_one():
    difference = differences(RECORDED.read_text().splitlines(), tool.lines())

    assert not difference, difference


def test_a_difference_names_both_forms_and_says_how_to_announce_and_record_it():
    text = differences(["a.f(x: int)", "a.g()"], ["a.f(y: int)", "a.g()"])

    assert "- a.f(x: int)\n+ a.f(y: int)\n" in text
    assert "DeprecationWarning that names the replacement and the version" in text
    assert REGENERATE in text


@pytest.mark.parametrize(
    "before, after",
    [
        ("def f(x): ...", "def f(y): ..."),
        ("def f(x): ...", "def f(x, y=1): ..."),
        ("def f(x=1): ...", "def f(x=2): ..."),
        ("def f(x: int): ...", "def f(x: str): ..."),
        ("def f(x): ...", ""),
        ("class C:\n    def m(self): ...", "class C: ..."),
        ("class C:\n    @property\n    def m(self): ...", "class C:\n    def m(self): ..."),
        ("class C:\n    x: int", "class C:\n    y: int"),
        ("class C:\n    def __init__(self, a): ...", "class C:\n    def __init__(self, b): ..."),
        ("import enum\nclass E(enum.Enum):\n    A = 1", "import enum\nclass E(enum.Enum):\n    B = 1"),
        ("LIMIT = 1", ""),
    ],
)
def test_every_change_of_a_form_is_a_difference(before, after):
    assert listed(before) != listed(after)


@pytest.mark.parametrize(
    "before, after",
    [
        ("def f(x): ...", "def f(x): return 1"),
        ("", "def _f(x): ..."),
        ("", "import os\nfrom typing import Any"),
        ("class C: ...", "class C:\n    def _m(self): ..."),
    ],
)
def test_what_is_nobodys_business_is_none(before, after):
    assert listed(before) == listed(after)


def listed(source: str) -> list[str]:
    module = types.ModuleType("example")
    exec(f"from __future__ import annotations\n{source}", vars(module))
    return [line for name, value in tool._public(module) for line in tool.describe(f"example.{name}", value)]


def test_no_line_depends_on_the_process():
    assert not [line for line in tool.lines() if re.search(r"0x[0-9a-f]{4}|ForwardRef", line)]


@pytest.mark.parametrize("name", [name for name in tool.MODULES if tool._exists(name)])
def test_every_public_method_of_a_contract_has_a_docstring(name):
    module = importlib.import_module(name)

    missing = {
        f"{cls.__name__}.{member}"
        for _, cls in tool._public(module)
        if inspect.isclass(cls)
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and (isinstance(value, classmethod | staticmethod | property) or inspect.isfunction(value))
        and not inspect.getdoc(getattr(cls, member))
    }

    assert missing == set()


@pytest.mark.parametrize("name", [name for name in tool.MODULES if tool._exists(name)])
def test_every_public_class_and_function_of_a_contract_has_a_docstring(name):
    module = importlib.import_module(name)
    things = [(attribute, value) for attribute, value in tool._public(module) if callable(value)]

    assert [attribute for attribute, value in things if not inspect.getdoc(value)] == []
