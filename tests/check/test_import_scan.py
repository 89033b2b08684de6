"""The static scan of a plugin's imports: against a little tree shaped like vLLM's, of which nothing is imported."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.vllm_tree import write_tree

from vllm_ext.check.import_scan import scan_imports
from vllm_ext.check.source_tree import SourceTree


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    return SourceTree([str(write_tree(tmp_path_factory.mktemp("host")))])


@pytest.fixture
def scan(tmp_path, monkeypatch, vllm):
    """Write the files of a plugin ``acme``, by name, and scan them from ``acme`` on."""
    monkeypatch.chdir(tmp_path)

    def scan(called="", host=vllm, **files):
        write_tree(tmp_path, {f"{name}.py": text for name, text in ({"__init__": ""} | files).items()}, "acme")
        return scan_imports(SourceTree([str(tmp_path)]), "acme", called, "acme", {"vllm": host})

    return scan


def found(result):
    """What is missing for certain: file, line, text and guard."""
    return [(each.path, each.line, each.absence.text, each.guard) for each in result.missing if each.absence.is_certain]


@pytest.mark.parametrize(
    "line",
    [
        "import vllm",
        "import vllm.platforms.interface as i, vllm.logger",
        "from vllm import LLM",
        "from vllm import ModelRegistry",
        "from vllm import platforms, engine",
        "from vllm.platforms import Platform, interface",
        # Through import *.
        "from vllm.platforms import PlatformEnum",
        "from vllm.platforms.interface import fast",
        # Folders without __init__.py.
        "from vllm.model_executor.layers.norm import RMSNorm",
        "from vllm.logger import *",
        "import vllm._C",
    ],
)
def test_what_is_there_is_no_finding(scan, line):
    result = scan(__init__=line)

    assert (result.missing, result.imported["vllm"] > 0) == ([], True)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("import vllm.vanished", "module vllm.vanished"),
        ("from vllm.platform import Platform", "module vllm.platform (did you mean 'platforms'?)"),
        ("from vllm.platforms.vanished.x import a", "module vllm.platforms.vanished"),
        ("from vllm.logger import init_loger", "name 'init_loger' of vllm.logger (did you mean 'init_logger'?)"),
        ("from vllm.platforms import Platfrm", "name 'Platfrm' of vllm.platforms (did you mean 'Platform'?)"),
        ("from vllm.model_executor import norm", "name 'norm' of vllm.model_executor, a folder without __init__.py"),
        # There for type checkers only.
        ("from vllm.platforms.interface import VllmConfig", "name 'VllmConfig' of vllm.platforms.interface"),
        ("import importlib; importlib.import_module('vllm.vanished')", "module vllm.vanished"),
    ],
)
def test_what_is_missing_is_named_with_file_line_and_the_closest_name(scan, line, text):
    assert found(scan(__init__=f"\n{line}")) == [("acme/__init__.py", 2, text, "")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("from vllm import NoSuchName", "vllm may have any name: it has a __getattr__"),
        ("from vllm.envs import VLLM_NEW", "vllm.envs may have any name: it has a __getattr__"),
        ("from vllm._C import ops", "vllm._C has no source to be read"),
    ],
)
def test_of_some_modules_it_cannot_be_told(scan, line, reason):
    (missing,) = scan(__init__=line).missing

    assert (missing.absence.is_certain, missing.absence.text) == (False, reason)


def test_a_module_that_is_known_to_make_no_names_is_taken_at_its_word(tmp_path):
    tree = SourceTree([str(write_tree(tmp_path))], closed=["vllm"])

    assert tree.absence("vllm", "LLM") is None
    assert tree.absence("vllm", "ModelRegistri").text.startswith("name 'ModelRegistri' of vllm (did you mean 'ModelRe")


@pytest.mark.parametrize(
    ("source", "guard"),
    [
        ("try:\n    import vllm.vanished\nexcept ImportError:\n    pass", "in a try"),
        ("try:\n    import vllm.vanished\nexcept:\n    pass", "in a try"),
        ("try:\n    import vllm.vanished\nexcept (KeyError, builtins.Exception):\n    pass", "in a try"),
        ("try:\n    import vllm.vanished\nexcept ModuleNotFoundError:\n    pass", "in a try"),
        ("with contextlib.suppress(ImportError):\n    import vllm.vanished", "in a try"),
        ("if TYPE_CHECKING:\n    import vllm.vanished", "under TYPE_CHECKING"),
        ("if not typing.TYPE_CHECKING:\n    pass\nelse:\n    import vllm.vanished", "under TYPE_CHECKING"),
        ("if version > 1:\n    import vllm.vanished", "under a condition"),
        ("if version > 1:\n    pass\nelse:\n    import vllm.vanished", "under a condition"),
        ("def f():\n    import vllm.vanished", "in a function"),
        ("class A:\n    async def f(self):\n        import vllm.vanished", "in a function"),
        # None of these helps.
        ("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import vllm.vanished", ""),
        ("try:\n    import vllm.vanished\nexcept KeyError:\n    pass", ""),
        ("try:\n    import vllm.vanished\nfinally:\n    pass", ""),
        ("try:\n    from vllm.logger import vanished\nexcept ModuleNotFoundError:\n    pass", ""),
        ("try:\n    pass\nfinally:\n    import vllm.vanished", ""),
        ("if not TYPE_CHECKING:\n    import vllm.vanished", ""),
        ("class A:\n    import vllm.vanished", ""),
        ("with open(__file__):\n    import vllm.vanished", ""),
    ],
)
def test_a_guard_is_one_where_it_helps(scan, source, guard):
    assert [each[3] for each in found(scan(__init__=source))] == [guard]


def test_what_the_entry_points_function_imports_is_certain_to_be_imported(scan):
    source = "def register():\n    import vllm.vanished\ndef other():\n    import vllm.vanished\n"

    assert [each[3] for each in found(scan(called="register", __init__=source))] == ["", "in a function"]


FALLBACK = "try:\n    from vllm.{} import {}\nexcept ImportError:\n    from vllm.{} import {}\n"


@pytest.mark.parametrize(
    ("first", "second", "name", "lines"),
    [
        ("vanished", "logger", "init_logger", [(2, "in a try")]),
        # The second is needed, and is not there either.
        ("vanished", "vanished", "x", [(2, "in a try"), (4, "")]),
    ],
)
def test_a_fallback_counts_where_the_first_choice_is_missing(scan, first, second, name, lines):
    result = scan(__init__=FALLBACK.format(first, "x", second, name))

    assert [(line, guard) for _, line, _, guard in found(result)] == lines


def test_a_fallback_within_a_function_is_one_too(scan):
    source = FALLBACK.format("vanished", "x", "vanished", "x").replace("\n", "\n    ")

    result = scan(__init__=f"def f():\n    {source}")

    assert [(line, guard) for _, line, _, guard in found(result)] == [(3, "in a function"), (5, "in a function")]


def test_a_fallback_that_is_not_needed_is_not_looked_up(scan):
    source = FALLBACK.format("logger", "init_logger", "vanished", "init_logger")

    assert found(scan(__init__=source)) == []


# One that misses something in a finally, while another error is on its way, takes its place: that is not looked into.
HARMLESS = st.sampled_from(["import host_pkg.sub", "pass"])
# Imports that work, that miss a module, and that miss a name.
IMPORTS = st.sampled_from(["import host_pkg.sub", "import host_pkg.gone", "from host_pkg.sub import gone", "pass"])
CAUGHT = st.sampled_from(
    [("ImportError",), ("ModuleNotFoundError",), ("KeyError",), ("ModuleNotFoundError", "Exception"), ("KeyError", "")]
)


def indented(*lines):
    return "\n".join(f"    {line}" for block in lines for line in block.splitlines())


def a_try(body, handlers, caught, after, last):
    parts = ["try:", indented(*body)]
    for name, handler in zip(caught, handlers, strict=False):
        parts += [f"except {name}:".replace(" :", ":"), indented(handler)]
    parts += ["else:", indented(after)]
    return "\n".join(parts + (["finally:", indented(last)] if last else []))


def blocks(inner):
    two = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        st.builds(a_try, two, st.tuples(inner, inner), CAUGHT, inner, st.one_of(st.none(), HARMLESS)),
        st.builds(lambda body: f"def f():\n{indented(body)}", inner),
        st.builds(lambda body: f"class A:\n{indented(body)}", inner),
        st.builds(lambda body, other: f"if TYPE_CHECKING:\n{indented(body)}\nelse:\n{indented(other)}", inner, inner),
        st.builds(lambda body: f"with suppress(ModuleNotFoundError):\n{indented(body)}", inner),
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A package that can really be imported."""
    folder = tmp_path_factory.mktemp("real")
    write_tree(folder, {"__init__.py": "", "sub.py": ""}, "host_pkg")
    sys.path.insert(0, str(folder))
    yield SourceTree([str(folder)])
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "host_pkg"]:
        del sys.modules[name]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.recursive(IMPORTS, blocks, max_leaves=8), min_size=1, max_size=3))
def test_it_says_that_an_import_fails_exactly_where_python_does(host, tmp_path, statements):
    source = "\n".join(["from contextlib import suppress", "TYPE_CHECKING = False", *statements])
    try:
        exec(source, {"__name__": "m"})
        fails = False
    except ImportError:
        fails = True
    (tmp_path / "scanned.py").write_text(source)

    scan = scan_imports(SourceTree([str(tmp_path)]), "scanned", "", "scanned", {"host_pkg": host})

    assert any(not missing.guard for missing in scan.missing) == fails


def test_it_follows_imports_and_class_paths_through_the_distribution(scan):
    result = scan(
        __init__="from acme.models import llama\ndef register(): return 'acme.platform.Npu'",
        models="from . import tables",
        llama="",
        tables="",
        platform="WORKER = 'acme.worker:Worker'\nTEXT = 'acme.docs'",
        worker="from vllm.vanished import x\ndef model(name): return f'acme.gemma:{name}', f'acme.phi.{name}'",
        gemma="",
        phi="",
        never="from vllm.vanished import x",
    )

    modules = ("models", "tables", "platform", "worker", "gemma", "phi")
    assert set(result.modules) == {"acme", *(f"acme.{name}" for name in modules)}
    assert found(result) == [("acme/worker.py", 1, "module vllm.vanished", "")]


def test_what_only_a_guard_leads_to_is_guarded(scan):
    result = scan(
        __init__="try:\n    from acme import fast, both\nexcept ImportError:\n    pass\nfrom acme import both",
        fast="import vllm.vanished",
        both="import vllm.vanished",
    )

    assert [(path, guard) for path, _, _, guard in found(result)] == [
        ("acme/both.py", ""),
        ("acme/fast.py", "in a module that is imported in a try"),
    ]


def test_imports_for_type_checkers_are_not_followed(scan):
    assert scan(__init__="if TYPE_CHECKING:\n    from acme import types", types="").modules == ["acme"]


def test_modules_that_import_each_other_are_read_once(scan):
    assert scan(__init__="from acme import a", a="from acme import b", b="from acme import a").modules == [
        "acme",
        "acme.a",
        "acme.b",
    ]


def test_packages_around_a_module_are_read_as_well(scan, tmp_path):
    write_tree(tmp_path, {"deep/__init__.py": "import vllm.vanished", "deep/er.py": ""}, "acme")

    assert found(scan(__init__="import acme.deep.er")) == [("acme/deep/__init__.py", 1, "module vllm.vanished", "")]


def test_what_cannot_be_parsed_is_said_to_be_unread(scan):
    assert scan(__init__="from acme import new", new="match = = 1").unread == ["acme.new"]


def test_without_a_vllm_imports_are_counted(scan):
    result = scan(host=None, __init__="import vllm.vanished\nfrom vllm import a, b")

    assert (result.missing, result.imported["vllm"]) == ([], 3)


def test_another_module_of_the_distribution_is_its_own_and_another_distribution_is_not(plugins, vllm):
    plugins.distribution("acme", {}, {"acme.py": "import acme_more, zeta", "acme_more.py": "X = 'acme_last:Model'"})
    plugins.distribution("zeta", {}, {"zeta.py": "import vllm.vanished"})
    (plugins.site / "acme_last.py").write_text("import vllm.vanished")
    for name, files in (("acme", "acme.py,,\nacme_more.py,,\nacme_last.py,,\n"), ("zeta", "zeta.py,,\n")):
        (plugins.site / f"{name}-0.1.dist-info" / "RECORD").write_text(files)

    assert scan_imports(SourceTree(), "acme", "", "acme", {"vllm": vllm}).modules == ["acme", "acme_more", "acme_last"]


def test_an_entry_point_without_a_module_is_no_scan(scan, tmp_path):
    assert scan_imports(SourceTree([str(tmp_path)]), "nothing.here", "", "acme", {}) is None


def test_an_editable_installation_is_found_by_its_finder(tmp_path, monkeypatch, vllm):
    """As setuptools writes it: the folder is not on the path."""
    import sys
    from importlib.machinery import PathFinder

    write_tree(
        tmp_path, {"__init__.py": "from acme_linked import sub", "sub.py": "import vllm.vanished"}, "acme_linked"
    )

    class Finder:
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return PathFinder.find_spec(name, [str(tmp_path)]) if name == "acme_linked" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])

    result = scan_imports(SourceTree(), "acme_linked", "", "acme", {"vllm": vllm})

    assert result.modules == ["acme_linked", "acme_linked.sub"]
