"""What other programs read: a shell, and tables by the width that the environment says."""

from __future__ import annotations

import subprocess

import pytest

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


@pytest.mark.parametrize("variable", ["CLIFF_MAX_TERM_WIDTH", "CLIFF_FIT_WIDTH"])
@pytest.mark.parametrize("text", ["wide", "1.5", ""])
def test_a_width_in_the_environment_that_is_no_number_is_refused_by_name(vllm_ext, monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)

    code, out, err = vllm_ext("list")

    assert (code, out) == (2, "")
    assert f"environment ({variable}): expected " in err
    assert f"given {text!r}" in err
