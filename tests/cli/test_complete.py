"""``vllm-ext complete``: a shell completes commands and options."""

from __future__ import annotations

import shutil
import subprocess

import pytest

# What the completion script expects of the package bash-completion, reduced to the last two words.
COMPLETE = """
_get_comp_words_by_ref() {
  words=("${COMP_WORDS[@]}"); cur="${COMP_WORDS[COMP_CWORD]}"; prev="${COMP_WORDS[COMP_CWORD-1]}"
}
source /dev/stdin
COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_vllm_ext
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here to complete anything")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("vllm-ext sh", "show"),
        ("vllm-ext config s", "sample schema show"),
        ("vllm-ext list --lo", "--load"),
        ("vllm-ext config show --ch", "--changed"),
    ],
)
def test_bash_offers_commands_and_options(vllm_ext, typed, offered):
    script = vllm_ext("complete").out

    done = subprocess.run(["bash", "-c", COMPLETE % typed], input=script, capture_output=True, text=True, check=True)

    assert done.stdout.split() == offered.split()


def test_without_a_shell_it_prints_the_words(vllm_ext):
    code, out, err = vllm_ext("complete", "--shell", "none")

    assert (code, err) == (0, "")
    assert "cmds='check complete config doctor env exec explain help list new plan run serve show'" in out
    assert "_vllm_ext()" not in out


def test_completions_of_other_distributions_are_not_imported(vllm_ext, plugins):
    before = vllm_ext("complete")
    plugins.distribution(
        "broken",
        {"cliff.formatter.completion": ["bash = broken:Bash", "fish = broken:Fish"]},
        {"broken.py": "raise RuntimeError('imported')"},
    )

    assert vllm_ext("complete") == before
