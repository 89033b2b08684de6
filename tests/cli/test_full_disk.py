"""Logs that cannot be written: an error in a line, and the exit code of what was done."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.commands import run_onto_full_disk

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device here that is always full")

FULL_LOG = "ERROR: --log-file /dev/full cannot be written: No space left on device\n"


def run(*arguments: str, stderr: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_ext", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        check=False,
    )


def test_a_log_file_that_is_full_is_one_line_after_the_rest():
    done = run("--log-file", "/dev/full", "list", "--platform", "nope", stderr=subprocess.PIPE)

    missing, *rest = done.stderr.splitlines(keepends=True)
    assert missing.startswith("ERROR: no platform plugin 'nope' is installed")
    assert (done.returncode, rest) == (2, [FULL_LOG])


def test_a_log_that_was_asked_for_and_is_not_there_is_the_exit_code():
    done = run("--log-file", "/dev/full", "-q", "plan", "--bind", stderr=subprocess.PIPE)

    assert (done.returncode, done.stderr) == (1, FULL_LOG)


def test_a_log_file_without_a_name_is_wrong_usage():
    done = run("--log-file", "", "list", stderr=subprocess.PIPE)

    assert done.returncode == 2
    assert "error: --log-file : Is a directory" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("list --platform nope", 2), ("run --model /nope", 2), ("run --set worker.cls=nope.Nope", 1), ("show cpu", 0)],
)
def test_where_standard_error_is_full_the_exit_code_is_still_that_of_the_command(arguments, code):
    with open("/dev/full", "w") as full:
        assert run(*arguments.split(), stderr=full.fileno()).returncode == code


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        ("run --max-tokens 2", ""),
        ("config schema", ""),
        ("list", "1"),
        ("--help", ""),
    ],
)
def test_a_standard_output_that_is_full_is_named_once(arguments, unbuffered):
    done = run_onto_full_disk(arguments, unbuffered)

    assert done.stderr == "ERROR: standard output cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_the_help_says_what_is_logged(vllm_ext, capsys):
    with pytest.raises(SystemExit):
        vllm_ext("--help")

    out = capsys.readouterr().out
    assert "Log errors alone; warnings too without it." in out
    # cliff's own, which is not so here.
    assert "except warnings and errors" not in out


def test_quiet_leaves_warnings_out(vllm_ext, plugins):
    plugins.distribution("bad", {"vllm.general_plugins": ["b = bad:run"]}, {"bad.py": "def run(): raise ValueError"})

    assert "WARNING: general plugin 'b'" in vllm_ext("run", "--max-tokens", "1").err
    assert vllm_ext("-q", "run", "--max-tokens", "1").err == ""
