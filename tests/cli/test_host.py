"""``vllm-ext env`` and ``vllm-ext exec``: the plan for a vLLM."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.commands import run_without
from support.distributions import GENERAL, PLATFORM
from support.stand_in_vllm import install_vllm

from vllm_ext.discovery import find_providers

CODE = """
def run(): pass
def npu(): return "vllm.platforms.interface.CpuPlatform"
def bad(): raise OSError("no driver")
"""


@pytest.fixture
def acme(plugins):
    install_vllm(plugins)
    plugins.distribution("acme", {GENERAL: ["a = acme:run"], PLATFORM: ["npu = acme:npu"]}, {"acme.py": CODE})
    return plugins


def test_the_variables_are_lines_for_a_shell(acme, vllm_ext):
    assert vllm_ext("env", "--no-load") == (0, "export VLLM_PLUGINS=a,npu\n", "")


def test_they_can_be_had_as_data_and_what_belongs_to_another_platform_is_left_out(acme, vllm_ext):
    acme.distribution("other", {GENERAL: ["b = acme:run"]}, {})

    assert vllm_ext("env", "--no-load", "-f", "json", "--platform", "cpu").out == {
        "VLLM_PLUGINS": "b",
        "VLLM_TARGET_DEVICE": "cpu",
    }


def test_a_shell_runs_nothing_of_a_name(acme, vllm_ext, tmp_path):
    acme.distribution("odd", {GENERAL: ["'$(touch ran)' = acme:run"]}, {})

    script = vllm_ext("env", "--no-load").out
    shell = subprocess.run(
        ["sh", "-c", f'{script}\nprintf %s "$VLLM_PLUGINS"'], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert shell.stdout == "a,'$(touch ran)',npu"
    assert not (tmp_path / "ran").exists()


def test_plugins_are_tried_first(acme, vllm_ext):
    acme.distribution("other", {GENERAL: ["broken = nowhere:run"]}, {})

    code, out, err = vllm_ext("env")

    assert (code, out) == (0, "export VLLM_PLUGINS=a,npu\n")
    assert "WARNING: general plugin 'broken' of other 0.1 failed: ModuleNotFoundError" in err
    assert "it is left out" in err


def test_what_a_vllm_is_not_told_is_said(acme, vllm_ext):
    assert vllm_ext("env", "--no-load", "--set", "worker.cls=acme.Worker").err == (
        "WARNING: no variable tells vLLM of worker.cls; its own option does: --worker-cls acme.Worker\n"
    )


def test_a_platform_that_is_named_and_fails_is_exit_code_3(acme, vllm_ext):
    acme.distribution("bad", {PLATFORM: ["npu2 = acme:bad"]}, {})

    code, out, err = vllm_ext("env", "--no-load", "--platform", "npu2")

    assert (code, out) == (3, "")
    assert "OSError: no driver" in err
    assert "A list permits that: platform: {driver: [npu2, cpu]}" in err


@pytest.mark.skipif(bool(find_providers(["vllm"])), reason="a vLLM is installed")
def test_without_a_vllm_there_is_none_to_start(vllm_ext):
    code, _, err = vllm_ext("env")

    assert code == 2
    assert "host (command line (vllm-ext env)) is 'vllm', and no installed distribution provides it" in err


def test_a_command_that_is_not_there_is_said_before_anything_is_tried(acme, vllm_ext):
    code, _, err = vllm_ext("exec", "--", "no-such-command")

    assert code == 2
    assert "no command 'no-such-command' is to be found on PATH" in err


def test_nor_is_a_file_that_cannot_be_executed_a_command(acme, vllm_ext, tmp_path):
    (tmp_path / "serve.py").write_text("")

    code, _, err = vllm_ext("exec", "--", tmp_path / "serve.py")

    assert code == 2
    assert "serve.py' is a file that can be executed; give another, or its path" in err


SHOW = "import os, sys; print(os.getpid(), os.environ['VLLM_PLUGINS'], sys.argv[1:]); sys.exit(7)"


def test_the_command_takes_the_place_of_the_process(acme):
    arguments = ["exec", "--no-load", "--platform", "npu", "--", sys.executable, "-c", SHOW, "--help", "-v", "--"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm_ext", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=120)

    assert process.returncode == 7
    assert out == f"{process.pid} a,npu ['--help', '-v', '--']\n"


RUDE = """
import os, signal
def npu():
    os.chdir("/")
    os.umask(0o077)
    os.environ["RUDE"] = "1"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("asked")
    return "vllm.platforms.interface.CpuPlatform"
"""
STATE = """
import os, signal
mask = os.umask(0)
print(os.getcwd(), oct(mask), "RUDE" in os.environ, signal.getsignal(signal.SIGHUP).name,
      signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_what_a_platform_changes_when_it_is_asked_does_not_reach_the_command(acme, tmp_path):
    acme.distribution("rude", {PLATFORM: ["rude = rude:npu"]}, {"rude.py": RUDE})
    # A relative path is one from where the user is.
    (tmp_path / "python").symlink_to(sys.executable)
    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", "exec", "--no-load", "--platform", "rude", "--", "./python", "-c", STATE],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        umask=0o022,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path} 0o22 False SIG_DFL False\n"
    assert "asked" in done.stderr


def test_what_the_command_says_itself_is_not_repeated(acme):
    arguments = ["exec", "--no-load", "--set", "worker.cls=acme.Worker", "--", "true", "--worker-cls", "acme.Worker"]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_torch_is_imported_by_plugins_alone(acme):
    done = run_without(["env", "--no-load"])

    assert (done.returncode, done.stderr) == (0, "")
