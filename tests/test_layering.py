"""The import direction and size limits of the package, and that the checker sees what breaks them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKER = Path(__file__).parent.parent / "tools" / "check_layering.py"


def check(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package that keeps every rule."""
    files = {
        "__init__.py": "from vllm_ext.engine.core import Engine\n",
        "errors.py": "class Error(Exception): ...\n",
        "config/__init__.py": "",
        "config/schema.py": "from vllm_ext.errors import Error\nfrom vllm_ext.config import sources\n",
        "config/sources.py": "import json\n",
        "engine/__init__.py": "",
        "engine/core.py": "from ..config.schema import Error\nfrom . import scheduler\nclass Engine: ...\n",
        "engine/scheduler.py": "",
    }
    root = tmp_path / "vllm_ext"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_vllm_ext_keeps_the_rules():
    result = check()

    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_a_package_that_keeps_the_rules_passes(package):
    result = check(package)

    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    "statement",
    [
        "import vllm_ext.engine.core",
        "from vllm_ext.engine import core",
        "from vllm_ext import engine",
        "from ..engine.core import Engine",
        "from .. import engine",
        "def f():\n    from vllm_ext.engine.core import Engine",
        "try:\n    import vllm_ext.engine.core as core\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import vllm_ext.engine",
    ],
)
def test_an_import_against_the_direction_is_a_breach(package, statement):
    module = package / "config" / "schema.py"
    module.write_text("import json\n" + statement + "\n")
    line = 1 + next(number for number, text in enumerate(module.read_text().splitlines()) if "engine" in text)

    result = check(package)

    assert result.returncode == 1
    assert f"{module}:{line}: config imports vllm_ext.engine" in result.stdout
    assert "but engine stands after config" in result.stdout


def test_an_import_for_type_checking_is_no_breach(package):
    source = "import typing\nif typing.TYPE_CHECKING:\n    from vllm_ext.engine.core import Engine\n"
    (package / "config" / "schema.py").write_text(source)

    assert check(package).returncode == 0


def test_a_public_name_taken_from_the_top_of_the_package_is_a_breach(package):
    (package / "config" / "schema.py").write_text("from vllm_ext import Engine\n")

    result = check(package)

    assert result.returncode == 1
    assert "schema.py:1: config imports from vllm_ext itself" in result.stdout


def test_a_package_without_a_row_is_a_breach(package):
    (package / "helpers.py").write_text("")

    result = check(package)

    assert result.returncode == 1
    assert "helpers.py:1: vllm_ext.helpers has no row" in result.stdout


@pytest.fixture
def engine_parts(package: Path) -> Path:
    """The package with folders in its engine, in the order that they have."""
    for name, text in {
        "engine/scheduling/__init__.py": "",
        "engine/scheduling/request.py": "from vllm_ext.engine.processes import joined\n",
        "engine/processes/__init__.py": "",
        "engine/processes/joined.py": "",
        "engine/llm.py": "from vllm_ext.engine.scheduling.request import joined\n",
    }.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    return package


def test_folders_of_a_package_that_keep_their_order_pass(engine_parts):
    assert check(engine_parts).stdout == ""


@pytest.mark.parametrize(
    "statement",
    [
        "from vllm_ext.engine.scheduling.request import Request",
        "from vllm_ext.engine import scheduling",
        "from ..scheduling import request",
    ],
)
def test_an_import_against_the_order_of_folders_is_a_breach(engine_parts, statement):
    (engine_parts / "engine" / "processes" / "joined.py").write_text(statement + "\n")

    result = check(engine_parts)

    assert result.returncode == 1
    assert "joined.py:1: engine/processes/ imports vllm_ext.engine.scheduling" in result.stdout
    assert "but engine/scheduling/ stands after it" in result.stdout


def test_a_folder_does_not_import_what_stands_beside_it(engine_parts):
    (engine_parts / "engine" / "scheduling" / "request.py").write_text("from vllm_ext.engine.llm import LLM\n")

    result = check(engine_parts)

    assert result.returncode == 1
    assert "request.py:1: engine/scheduling/ imports vllm_ext.engine.llm.LLM, which stands after" in result.stdout


def test_a_folder_without_a_place_is_a_breach(engine_parts):
    (engine_parts / "engine" / "helpers").mkdir()
    (engine_parts / "engine" / "helpers" / "texts.py").write_text("")

    result = check(engine_parts)

    assert result.returncode == 1
    assert "texts.py:1: engine/helpers/ has no place in PARTS" in result.stdout


def test_a_module_above_400_lines_is_a_breach(package):
    (package / "errors.py").write_text("# line\n" * 400)
    assert check(package).returncode == 0

    (package / "errors.py").write_text("# line\n" * 401)
    result = check(package)

    assert result.returncode == 1
    assert "errors.py:401: the module has 401 lines, limit 400" in result.stdout


def test_a_function_above_60_lines_is_a_breach(package):
    (package / "errors.py").write_text("class A:\n    async def f(self):\n" + "        self\n" * 59)
    assert check(package).returncode == 0

    (package / "errors.py").write_text("class A:\n    async def f(self):\n" + "        self\n" * 60)
    result = check(package)

    assert result.returncode == 1
    assert "errors.py:2: function f has 61 lines, limit 60" in result.stdout


def test_a_directory_that_is_no_package_is_not_taken_for_a_clean_one(tmp_path):
    result = check(tmp_path)

    assert result.returncode == 2
    assert "is not a package" in result.stderr
