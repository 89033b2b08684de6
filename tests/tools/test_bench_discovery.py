"""tools/bench_discovery.py: what it makes, measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions

import pytest
from support.tools import TOOLS, load_tool, quotient

tool = load_tool("bench_discovery")


@pytest.fixture(scope="module")
def finished():
    """The tool, run as a command with few distributions."""
    command = [sys.executable, str(TOOLS / "bench_discovery.py"), "--sizes", "3", "0", "--runs", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture
def site(tmp_path):
    """A folder with a few distributions."""
    tool.make_folder(tmp_path / "site", 5)
    return tmp_path / "site"


@pytest.mark.slow
def test_each_size_of_list_is_compared_to_no_further_distributions(finished):
    rows = json.loads(finished.stdout)["list"]

    assert [row["distributions"] for row in rows] == [0, 3]
    assert rows[0]["more_s"] == 0
    assert rows[1]["more_s"] == pytest.approx(rows[1]["median_s"] - rows[0]["median_s"], abs=2e-4)
    assert all(row["within"] in (True, False) for row in rows)


def test_both_ways_of_loading_and_the_scan_alone_are_timed(finished):
    rows = json.loads(finished.stdout)["loading"]

    assert [row["distributions"] for row in rows] == [0, 3]
    for row in rows:
        assert row["ratio"] == quotient(row["entry_points_ms"], row["ours_ms"], digits=3, of_ratio=2)
        assert row["scan_ms"] > 0
        assert "within" not in row, "the budget is for another size"


def test_machine_parameters_and_progress_are_reported(finished):
    results = json.loads(finished.stdout)

    assert results["machine"]["python"] == sys.version.split()[0]
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["platform"]
    assert results["parameters"] == {"sizes": [0, 3], "runs": 1, "plugins": 8, "groups": list(tool.GROUPS)}
    assert "warm-up, 0 distributions: list" in finished.stderr
    assert "run 1/1, 3 distributions: list" in finished.stderr


def test_budgets_are_those_of_the_design():
    medians = {0: 0.2, 10: 0.31, 1000: 0.3, 5000: 0.9}

    assert tool.list_result(medians, 0) == {
        "distributions": 0,
        "median_s": 0.2,
        "more_s": 0.0,
        "budget_s": 0.25,
        "within": True,
    }
    assert tool.list_result({0: 0.25}, 0)["within"] is False
    assert tool.list_result(medians, 10)["within"] is False
    assert tool.list_result(medians, 1000)["within"] is True
    assert "within" not in tool.list_result(medians, 5000)
    for ratio, is_within in ((4.9, False), (5.0, True)):
        times = {"ours": {1000: 0.02}, "entry_points": {1000: 0.02 * ratio}, "scan": {1000: 0.01}}
        result = tool.loading_result(times, 1000)
        assert (result["ratio"], result["budget_ratio"], result["within"]) == (ratio, 5, is_within)


def test_the_folder_has_distributions_as_pip_leaves_them(site):
    found = {distribution.name: distribution for distribution in distributions(path=[str(site)])}
    plugins = {plugin.distribution for plugin in tool.PLUGINS}
    unrelated = found.keys() - plugins

    assert plugins <= found.keys()
    assert len(unrelated) == 5
    for name, distribution in found.items():
        assert distribution.version
        assert 1_500 <= len(distribution.read_text("METADATA")) <= 21_000
        assert 20 <= len(distribution.read_text("RECORD").splitlines()) <= 200
        assert distribution.read_text("WHEEL")
        assert (site / distribution.read_text("top_level.txt").strip() / "__init__.py").exists()
        assert any(point.group.startswith("vllm.") for point in distribution.entry_points) == (name in plugins)
    assert any(found[name].entry_points for name in unrelated)


def test_the_folder_is_the_same_every_time(site, tmp_path):
    tool.make_folder(tmp_path / "again", 5)

    def content(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert content(site) == content(tmp_path / "again")


@pytest.mark.parametrize("way", ["ours", "entry_points", "scan"])
def test_a_plugin_that_is_not_found_by_one_way_ends_the_benchmark(site, way):
    (folder,) = site.glob("bench_statsd-*.dist-info")
    (folder / "entry_points.txt").unlink()

    with pytest.raises(RuntimeError, match=rf"{way} gave \['bench_device_log'\] of vllm.stat_logger_plugins instead"):
        tool.time_loading(site, way)


@pytest.mark.parametrize("way", ["ours", "entry_points"])
def test_a_plugin_that_cannot_be_loaded_ends_the_benchmark(site, way):
    (site / "bench_models" / "bench_llava.py").write_text("raise ImportError('no such device')\n")

    with pytest.raises(RuntimeError, match=rf"{way} gave \[.*'bench_mixture'\] of vllm.general_plugins instead of"):
        tool.time_loading(site, way)


def test_a_listing_without_a_plugin_ends_the_benchmark(site):
    (folder,) = site.glob("bench_other_device-*.dist-info")
    folder.rename(folder.with_suffix(".gone"))

    with pytest.raises(RuntimeError, match=r"list gave \['bench_device'\] of vllm.platform_plugins instead of"):
        tool.time_list(site)


def test_ways_that_load_different_plugins_are_not_compared(monkeypatch, capsys):
    less = "\ndef work(all_of=work):\n    return all_of() | {'vllm.general_plugins': ['bench_llava', 'bench_moe']}\n"
    monkeypatch.setitem(tool.WAYS, "entry_points", tool.WAYS["entry_points"] + less)

    assert tool.main(["--sizes", "0", "--runs", "1"]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: entry_points gave ['bench_llava', 'bench_moe'] of vllm.general_plugins instead of" in printed.err


def test_measured_processes_see_no_settings_of_the_user(site, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "bench_llava")
    monkeypatch.setenv("VLLM_EXT_PLATFORM__DRIVER", "bench_device")
    monkeypatch.setenv("PYTHONPATH", str(site.parent))
    script = "import os, sys; print([n for n in os.environ if n.startswith('VLLM_')], sys.path[0])"

    _, output = tool.run_python(site, "-c", script)

    assert output.split() == ["[]", str(site)]


def test_a_process_that_fails_is_reported_with_its_last_words(site):
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 1:.*no such device"):
        tool.run_python(site, "-c", "import sys; sys.exit('no such device')")


@pytest.mark.parametrize("options", [["--sizes", "-1"], ["--runs", "0"]])
def test_impossible_numbers_are_refused(options, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(options)

    assert caught.value.code == 2
    assert "--runs has to be at least 1, and each of --sizes at least 0" in capsys.readouterr().err
