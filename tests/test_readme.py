"""The README tells the truth: its commands and programs run, and its two main lines are those of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.stand_in_vllm import install_vllm

import vllm_ext
from vllm_ext.cli.main import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
INSTALL = "pip install -c tools/constraints.txt"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


PLUGIN_INSTALL = ".venv/bin/pip install ./"
(FIRST_PLUGIN,) = (block for block in blocks("sh") if block.startswith(PLUGIN_INSTALL))
(HOST,) = (block for block in blocks("sh") if block.startswith("vllm-ext exec -- vllm "))
(NEW_PLUGIN,) = (block for block in blocks("sh") if block.startswith("vllm-ext new "))
# Serves until it is told to stop; tests/cli/test_serve.py runs it.
(SERVED,) = (block for block in blocks("sh") if block.startswith("vllm-ext serve"))
APART = (FIRST_PLUGIN, HOST, NEW_PLUGIN, SERVED)
COMMANDS = [line for block in blocks("sh") if block not in APART for line in block.splitlines()]
OFFLINE = ["--no-index", "--no-build-isolation", "--target", "site"]
MAIN_LINES = [line for line in COMMANDS if INSTALL in line]


def run(command, cwd, **env):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | env)


def test_the_two_main_lines_install_with_the_constraints_each_into_its_own_environment():
    run_line, test_line = MAIN_LINES

    assert run_line.startswith(f"python3 -m venv .venv && .venv/bin/{INSTALL} . && .venv/bin/vllm-ext run ")
    assert test_line == (
        f"python3 -m venv .venv-test && .venv-test/bin/{INSTALL} -e '.[test]' && .venv-test/bin/pytest"
    )


def slow_where(is_slow, value):
    """A parameter; what starts processes with torch is for the slow lane, and has tests of its own in the other."""
    return pytest.param(value, marks=pytest.mark.slow) if is_slow else value


STARTS_PROCESSES = re.compile("--load|--time|multiproc")


@pytest.mark.parametrize(
    "line",
    [
        slow_where(STARTS_PROCESSES.search(line), line)
        for line in (*(line.split(" && ")[-1] for line in MAIN_LINES[:1]), *COMMANDS)
    ],
)
def test_every_command_runs(line, tmp_path, monkeypatch, capfd):
    if line in MAIN_LINES:
        pytest.skip("installs; .ci/run runs the second, and what the first runs is tested by itself")
    program, *arguments = shlex.split(line)
    assert Path(program).name == "vllm-ext"
    monkeypatch.chdir(tmp_path)

    code = main(arguments)

    written = capfd.readouterr()
    # What --stats asks for is beside the text.
    assert (code, written.err != "") == (0, "--stats" in arguments)
    assert written.out


def test_the_first_plugin_is_installed_listed_and_computes(tmp_path):
    install, listing, generation = FIRST_PLUGIN.splitlines()
    project = install.removeprefix(PLUGIN_INSTALL)
    shutil.copytree(ROOT / project, tmp_path / project)

    installed = run([sys.executable, "-m", "pip", "install", *OFFLINE, f"./{project}"], tmp_path)
    listed, generated = (
        run([sys.executable, "-m", "vllm_ext.cli.main", *shlex.split(line)[1:]], tmp_path, PYTHONPATH="site")
        for line in (listing, generation)
    )

    assert (installed.returncode, listed.returncode, generated.returncode) == (0, 0, 0), installed.stderr
    assert re.search(r"\| dummy +\| vllm[-_]ext[-_]dummy[-_]platform +\|", listed.stdout)
    assert generated.stdout


@pytest.mark.parametrize("line", HOST.splitlines())
def test_the_lines_for_a_vllm_give_it_the_plugins_of_the_plan(line, plugins, tmp_path):
    install_vllm(plugins)
    plugins.distribution("acme", {"vllm.general_plugins": ["a = acme:run"]}, {"acme.py": "def run(): ..."})
    show = 'echo "$VLLM_PLUGINS $VLLM_TARGET_DEVICE $*"\n'
    for name, text in {"vllm": show, "vllm-ext": f'{sys.executable} -m vllm_ext "$@"\n'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}

    done = run(["sh", "-ec", f"{line}\n{show}"], tmp_path, **path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a cpu ")


@pytest.mark.slow
def test_a_new_plugin_is_installed_loads_and_its_tests_pass(tmp_path):
    new, install, show, test = map(shlex.split, NEW_PLUGIN.splitlines())
    assert (install[:3], test[0]) == ([".venv/bin/pip", "install", "-e"], ".venv/bin/pytest")
    paths = os.pathsep.join(["site", str(ROOT)])

    written = run([sys.executable, "-m", "vllm_ext", *new[1:]], tmp_path, PYTHONPATH=str(ROOT))
    # What it requires is here, which pip does not see with --target.
    installed = run([sys.executable, "-m", "pip", "install", "--no-deps", *OFFLINE, install[3]], tmp_path)
    shown, tested = (
        run([sys.executable, "-m", *command], tmp_path, PYTHONPATH=paths)
        for command in (["vllm_ext", *show[1:]], ["pytest", *test[1:]])
    )

    assert (written.returncode, installed.returncode) == (0, 0), written.stderr + installed.stderr
    assert shown.returncode == 0, shown.stdout
    assert re.search(r"\| outcome +\| active +\|", shown.stdout)
    assert tested.returncode == 0, tested.stdout
    assert "3 passed" in tested.stdout


@pytest.mark.parametrize("program", [slow_where(i > 0, program) for i, program in enumerate(blocks("python"))])
def test_every_program_runs(program, tmp_path):
    done = run([sys.executable, "-c", program], tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_listing_is_what_the_command_prints(tmp_path):
    done = run([sys.executable, "-m", "vllm_ext.cli.main", "list"], tmp_path)

    assert done.stdout.strip() in TEXT


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_every_contract_that_a_plugin_imports_is_mentioned():
    of_users = {"LLM", "AsyncLLM", "LLMEngine", "SamplingParams", "PoolingParams", "__version__"}
    of_users |= {name for name in vllm_ext.__all__ if name.endswith("Output")}
    functions = {"load_general_plugins", "load_plugins_by_group"}

    contracts = set(vllm_ext.__all__) - of_users - functions

    assert {name for name in contracts if f"`{name}" not in TEXT} == set()
