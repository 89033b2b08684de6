"""Names of modules by their syntax: the same that Python finds when it runs them."""

from __future__ import annotations

import ast
import importlib
import json
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_ext.check.module_names import names_in
from vllm_ext.check.source_tree import SourceTree


def names_of(source, package="pkg"):
    return names_in(ast.parse(textwrap.dedent(source)), package)


NAMES = st.sampled_from("abcdefgh")
SIMPLE = st.one_of(
    st.builds("{} = 1".format, NAMES),
    st.builds("{}: int = 1".format, NAMES),
    st.builds("{}: int".format, NAMES),
    st.builds("{}, *{} = 1, 2".format, NAMES, NAMES),
    st.builds("def {}({}=0): {} = 1".format, NAMES, NAMES, NAMES),
    st.builds("class {}: {} = 1".format, NAMES, NAMES),
    st.builds("import json as {}".format, NAMES),
    st.builds("from json import dumps as {}".format, NAMES),
    st.builds("import os.path".format),
    st.builds("[{} for {} in range(2)]".format, st.just("x"), st.just("x")),
    st.builds("({} := 1)".format, NAMES),
    st.builds("lambda {}: ({} := 1)".format, NAMES, NAMES),
)
BLOCKS = st.one_of(
    st.builds("if {}:\n    {}".format, st.booleans(), SIMPLE),
    st.builds("for {} in range(1):\n    {}".format, NAMES, SIMPLE),
    st.builds("try:\n    raise ImportError\nexcept ImportError as {}:\n    {}".format, NAMES, SIMPLE),
    st.builds("import contextlib\nwith contextlib.nullcontext() as {}:\n    {}".format, NAMES, SIMPLE),
    st.builds("match [1, 2]:\n    case [{}, *{}]:\n        {}".format, NAMES, st.sampled_from("ij"), SIMPLE),
    st.builds("def k():\n    global {0}\n    {0} = 1\nk()".format, NAMES),
)


@settings(max_examples=150)
@given(st.lists(st.one_of(SIMPLE, BLOCKS), max_size=8))
def test_what_a_module_has_when_it_was_run_is_found(statements):
    source = "\n".join(statements)
    namespace = {"__name__": "m"}
    exec(source, namespace)

    assert set(namespace) - {"__name__", "__builtins__", "__annotations__"} <= names_in(ast.parse(source), "m").names


@settings(max_examples=100)
@given(st.lists(SIMPLE.filter(lambda line: not line.endswith(": int")), max_size=8))
def test_and_where_every_line_runs_nothing_else_is(statements):
    source = "\n".join(statements)
    namespace = {"__name__": "m"}
    exec(source, namespace)

    assert set(namespace) - {"__name__", "__builtins__", "__annotations__"} == names_in(ast.parse(source), "m").names


# Packages with import *, __all__ made of others, __getattr__, submodules, names under conditions.
STDLIB = ("asyncio", "json", "logging", "logging.handlers", "email.message", "concurrent.futures", "unittest", "socket")


@pytest.mark.parametrize("name", STDLIB)
def test_of_real_packages_nothing_that_is_there_is_called_missing(name):
    module = importlib.import_module(name)
    tree = SourceTree([entry for entry in sys.path if entry.endswith(f"python3.{sys.version_info.minor}")])
    # Submodules are attributes once somebody has imported them; others have been put there by hand.
    there = [each for each in dir(module) if not each.startswith("__")]

    missing = [each for each in there if (found := tree.absence(name, each)) is not None and found.is_certain]

    assert len(there) > 5
    assert missing == []


def test_what_a_real_module_has_not_is_missing_with_the_closest_name():
    tree = SourceTree([entry for entry in sys.path if entry.endswith(f"python3.{sys.version_info.minor}")])

    assert not hasattr(json, "dump_all")
    assert tree.absence("json", "dump_all").text == "name 'dump_all' of json (did you mean 'dump'?)"
    assert tree.absence("json.decodr").text == "module json.decodr (did you mean 'decoder'?)"


def test_a_name_that_is_deleted_is_not_there():
    assert names_of("a = b = 1\ndel a").names == {"b"}


def test_names_for_type_checkers_are_apart():
    found = names_of(
        """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from x import a, b
        else:
            b = 1
        if not TYPE_CHECKING:
            c = 1
        """
    )

    assert (found.names, found.typed) == ({"TYPE_CHECKING", "b", "c"}, {"a"})


@pytest.mark.parametrize(
    ("source", "exported"),
    [
        ("a = _b = 1", {"a"}),
        ("__all__ = ['a', '_b']", {"a", "_b"}),
        ("__all__ = ['a'] + ['b']", {"a", "b"}),
        ("__all__ = ['a']; __all__ += ('b',)", {"a", "b"}),
        ("__all__ = ['a']; __all__.extend(['b']); __all__.append('c')", {"a", "b", "c"}),
        ("__all__: list[str] = ['a']", {"a"}),
        # What other modules list is not looked up.
        ("__all__ = ['a'] + other.__all__", None),
        ("__all__ = ['a']; __all__ += other.__all__", None),
        ("from other import __all__", None),
    ],
)
def test_what_import_star_takes(source, exported):
    assert names_of(source).exported == exported


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def __getattr__(name): ...", "it has a __getattr__"),
        ("globals()['a'] = 1", "it calls globals()"),
        ("exec('a = 1')", "it calls exec()"),
        ("import sys\nsys.modules[__name__] = 1", "it uses sys.modules"),
        ("__path__ = []", "it changes its __path__"),
        ("a = 1", ""),
    ],
)
def test_a_module_that_makes_names_may_have_any(source, reason):
    assert names_of(source).why_open == reason


@pytest.mark.parametrize(
    ("line", "stars"),
    [
        ("from .a import *", ("pkg.sub.a",)),
        ("from . import *", ("pkg.sub",)),
        ("from ..a import *", ("pkg.a",)),
        ("from ...a import *", ()),
        ("from x.y import *", ("x.y",)),
    ],
)
def test_relative_imports_start_from_the_package(line, stars):
    assert names_of(line, "pkg.sub").stars == stars
