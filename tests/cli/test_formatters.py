"""What other programs read: a shell, and tables by the width that the environment says."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys

import pytest
from cliff.formatters.table import TableFormatter

from vllm_ext.cli.formatters import CheckedTableFormatter

GENERAL = "vllm.general_plugins"


class TestShell:
    NAME = "x$(touch ran)`touch ran`"

    @pytest.fixture
    def source(self, vllm_ext, plugins, tmp_path):
        """What ``show -f shell`` prints of a plugin with commands in its name and its error, read by a shell."""
        body = f"def run():\n    raise ValueError({self.NAME!r} + ' \\\\ \"quoted\" end\\\\')\n"
        plugins.distribution("acme", {GENERAL: [f"{self.NAME} = acme:run"]}, {"acme.py": body})

        def source(variable: str) -> str:
            code, out, _ = vllm_ext("show", self.NAME, "--load", "-f", "shell", "--prefix", "p_")
            assert code == 1
            script = f'{out}\nprintf %s "${variable}"'
            done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
            assert done.stderr == ""
            return done.stdout

        return source

    def test_a_shell_gets_the_values_and_runs_nothing_of_them(self, source, tmp_path):
        assert source("p_name") == self.NAME
        assert source("p_detail") == f'ValueError: {self.NAME} \\ "quoted" end\\'
        assert not (tmp_path / "ran").exists()

    def test_a_text_of_several_lines_is_one_value(self, source):
        assert source("p_traceback").startswith("Traceback (most recent call last):\n")

    def test_names_are_such_as_a_shell_has(self, vllm_ext):
        code, out, _ = vllm_ext("config", "schema", "-f", "shell", "-c", "$schema")

        assert (code, out) == (0, '_schema="https://json-schema.org/draft/2020-12/schema"\n')

    def test_cliffs_option_for_some_of_them_chooses(self, vllm_ext):
        code, out, _ = vllm_ext("show", "cpu", "-f", "shell", "--variable", "name", "--variable", "kind")

        assert (code, out) == (0, 'name="cpu"\nkind="platform"\n')

    @pytest.mark.parametrize("prefix", ["$(touch ran)", "a b", "1", "a=1;"])
    def test_a_prefix_of_no_name_is_refused(self, vllm_ext, prefix):
        code, out, err = vllm_ext("show", "cpu", "-f", "shell", "--prefix", prefix)

        assert (code, out) == (2, "")
        assert f"command line (--prefix): {prefix!r} begins no name of a variable" in err


class TestTable:
    @pytest.mark.parametrize("max_width", [0, 20, 21, 80])
    @pytest.mark.parametrize(
        "rows",
        [
            [("cpu", "candidate")],
            [("a longer text", ""), ("", "x"), ("-", "  blanks  ")],
            [("全角", "wide"), ("e\u0301", "combining")],
            [("two\nlines", "a\ttab"), ("x", "y")],
            [(1, "a number"), (None, "nothing"), (1.5, "x"), (True, "x")],
            [],
        ],
        ids=["plain", "blanks", "wide", "control", "values", "none"],
    )
    @pytest.mark.parametrize("print_empty", [False, True])
    def test_it_is_cliffs(self, rows, max_width, print_empty):
        arguments = argparse.Namespace(max_width=max_width, fit_width=False, print_empty=print_empty)
        expected, out = io.StringIO(), io.StringIO()
        TableFormatter().emit_list(("name", "status"), rows, expected, arguments)

        CheckedTableFormatter().emit_list(("name", "status"), iter(rows), out, arguments)

        assert out.getvalue() == expected.getvalue()

    def test_one_of_plain_texts_needs_no_library_for_the_widths_of_characters(self):
        code = (
            "import sys; from vllm_ext.cli.main import main; main(['list', '--group', 'vllm_ext.executors']); "
            "sys.exit('wcwidth was imported' if 'wcwidth' in sys.modules else 0)"
        )

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("variable", ["CLIFF_MAX_TERM_WIDTH", "CLIFF_FIT_WIDTH"])
@pytest.mark.parametrize("text", ["wide", "1.5", ""])
def test_a_width_in_the_environment_that_is_no_number_is_refused_by_name(vllm_ext, monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)

    code, out, err = vllm_ext("list")

    assert (code, out) == (2, "")
    assert f"environment ({variable}): expected " in err
    assert f"given {text!r}" in err
