"""What the docstring of every public method of a contract says.

The contracts are the classes and functions that the tables of COMPATIBILITY.md name; nothing is listed here. A method's
text is its own, or that of the method which it overrides. It is compared with the method itself:

- every tensor among parameters and results has a shape and a dtype: in its entry below ``Args:`` or in ``Returns:``, in
  a sentence that names it, in the docstring of a method that the text sends its reader to, or once for all methods in
  the docstring of the class or its module;
- every number has a unit, or a word that says what it counts;
- a parameter that could be changed (a tensor, a module, the configuration) is said to be changed or only read; what the
  body sets, or changes in place, is named;
- every exception that the body raises, or a private function that it calls, has an entry of at least three words below
  ``Raises:`` or a condition right after its name; who says that something is raised says what;
- the name is vLLM's. A class (or its module) says once which class of vLLM it stands for; then a method needs no words
  where that class has one of the same name. Another one says which name it has in vLLM, or that it is an extension of
  vLLM's contract. ``vllm_names.txt`` has vLLM's names, so that neither claim can be wrong.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import textwrap
from pathlib import Path

import pytest
from support.compatibility import contract_classes, contract_functions, public_methods
from support.docstrings import Method, complaints, in_vllm, plain

NAMES = Path(__file__).parent / "vllm_names.txt"


def vllm_names() -> dict[str, set[str]]:
    """Names of members by class of vLLM."""
    found: dict[str, set[str]] = {}
    for line in NAMES.read_text().splitlines():
        if not line.startswith("#"):
            cls, _, names = line.partition(": ")
            found.setdefault(cls, set()).update(names.split())
    return found


VLLM = vllm_names()


def found_in(cls: type) -> dict[str, list[str]]:
    """Complaints about the methods of a class, by name."""
    methods = {name: Method(cls, name, plain(value)) for name, value in public_methods(cls).items()}
    return {name: found for name, method in methods.items() if (found := complaints(method, VLLM))}


@pytest.mark.parametrize("cls", contract_classes(), ids=lambda cls: cls.__name__)
def test_every_method_of_a_contract_says_what_it_has_to(cls):
    assert found_in(cls) == {}


@pytest.mark.parametrize("function", contract_functions(), ids=lambda function: function.__name__)
def test_every_function_of_a_contract_says_what_it_has_to(function):
    assert complaints(Method(None, function.__name__, function), VLLM) == []


def test_the_contracts_are_found():
    names = {cls.__name__ for cls in contract_classes()}

    assert {"Platform", "WorkerBase", "AttentionImpl", "DeviceCommunicatorBase", "Executor", "AsyncLLM"} < names
    assert "all_reduce" in public_methods(next(c for c in contract_classes() if c.__name__ == "DeviceCommunicatorBase"))


def test_the_names_are_those_of_classes_that_a_contract_stands_for():
    everything = " ".join(path.read_text() for path in (Path(__file__).parents[2] / "vllm_ext").rglob("*.py"))

    assert set(VLLM) - in_vllm(everything) == {"functions"}


# The rules notice what they are there for -----------------------------------------------------------------------------

SOUND = '''
class Contract:
    """vLLM: ``Executor``."""

    def execute_model(self, rows: torch.Tensor, count: int = 1) -> torch.Tensor:
        """Do it.

        Args:
            rows: ``[rows, hidden]``, float32; changed in place.
            count: number of times.

        Returns: ``[rows]``, int64.

        Raises:
            ValueError: there are no rows.
        """
        if not len(rows):
            raise ValueError("no rows")
        self.last = rows.add_(count)
        return rows.argmax(dim=-1)
'''.replace("Do it.", "Do it, and set ``last``.")


def complaints_about(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said about the class ``Contract``, all of it."""
    path = tmp_path / "sample.py"
    path.write_text(f"from __future__ import annotations\nimport torch\n{textwrap.dedent(source)}")
    spec = importlib.util.spec_from_file_location("vllm_ext.sample", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return "; ".join(f"{name} {text}" for name, texts in found_in(module.Contract).items() for text in texts)


def test_a_docstring_that_says_it_all_is_left_alone(tmp_path, monkeypatch):
    assert complaints_about(SOUND, tmp_path, monkeypatch) == ""


@pytest.mark.parametrize(
    ("words", "instead", "complaint"),
    [
        (r'        """Do it.*?"""\n', "", "has no docstring"),
        (r" {12}rows: .*?\n", "", "says no shape and no dtype of tensor rows"),
        (r"``\[rows, hidden\]``, float32", "of some shape, float32", "says no shape of tensor rows"),
        (r"``\[rows, hidden\]``, float32", "``[rows, hidden]``, of a dtype", "says no dtype of tensor rows"),
        (r"Returns: .*?\n", "\n", "says no shape and no dtype of the resulting tensor"),
        ("Returns: .*?int64.", "Returns: ``[rows]``.", "says no dtype of the resulting tensor"),
        ("number of times", "optional", "says not what number count counts"),
        (r" {12}count: .*?\n", "", "says not what number count counts"),
        ("; changed in place", "", "says not whether rows is changed"),
        ("; changed in place", "; only read", "says not that rows is changed in place"),
        (", and set ``last``", "", "says not that it sets last"),
        (r"Raises:\n.*?there are no rows.\n", "\n", "says not when it raises ValueError"),
        ("there are no rows", "", "says not when it raises ValueError"),
        ("ValueError: there are", "KeyError: there are", "says not when it raises ValueError"),
        ("ValueError: there are", "RowsError: there are", "promises RowsError, which is no exception"),
        (r"Raises:\n.*?there are no rows.\n", "May raise.\n", "says 'raise' and not which exception"),
        ("vLLM: ``Executor``.", "An executor.", "does not say what it is in vLLM"),
        ("def execute_model", "def run_model", "is no name of vLLM's, and does not say so"),
        ("Do it", "An extension of vLLM's contract. Do it", "is called an extension, and vLLM has execute_model"),
        ("Do it", "vLLM: ``run_a_step``. Do it", "says that vLLM calls it run_a_step, which vLLM has not"),
    ],
)
def test_what_is_missing_or_wrong_is_noticed(words, instead, complaint, tmp_path, monkeypatch):
    source = re.sub(words, lambda _: instead, SOUND, count=1, flags=re.DOTALL)
    assert source != SOUND

    found = complaints_about(source, tmp_path, monkeypatch)

    assert complaint in found


@pytest.mark.parametrize("told", [True, False])
def test_what_a_private_function_raises_is_raised(told, tmp_path, monkeypatch):
    source = '''
        class Contract:
            """vLLM: ``Executor``."""

            def check_health(self) -> None:
                """TEXT"""
                self._check()

            def _check(self) -> None:
                raise self._error()

            def _error(self) -> RuntimeError:
                return RuntimeError("no")
    '''.replace("TEXT", "RuntimeError where it is not well." if told else "Look whether it is well.")

    found = complaints_about(source, tmp_path, monkeypatch)

    assert found == ("" if told else "check_health says not when it raises RuntimeError")


def test_a_method_that_overrides_another_has_its_docstring(tmp_path, monkeypatch):
    override = "class Contract(Base):\n    def execute_model(self, rows: torch.Tensor, count: int = 1): return rows\n"

    assert complaints_about(SOUND.replace("Contract", "Base") + override, tmp_path, monkeypatch) == ""
    assert complaints_about(override.replace("Base", "object"), tmp_path, monkeypatch) != ""
